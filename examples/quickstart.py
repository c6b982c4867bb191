"""RAM on scikit-learn's digits in about two minutes: train it and two controls, measure, compare, and watch.

The controls are trained just like RAM, but look at random places or always at the centre.

    python -m examples.quickstart [FOLDER] [EPOCHS]
"""

import sys
import time
from pathlib import Path

from agents.cli import main

LOCATORS = ("learned", "random", "centre")


def quickstart(folder: Path, epochs: int | None = None) -> None:
    start = time.monotonic()
    if (folder / LOCATORS[0]).exists():
        raise SystemExit(f"{folder} holds a quickstart already: remove it, or run python -m examples.quickstart FOLDER")
    length = [] if epochs is None else ["--epochs", str(epochs)]
    for locator in LOCATORS:
        out = ["--out", str(folder / locator)]
        main(["train", "ram", "--task", "digits", "--locator", locator, *out, *length])
    main(["evaluate", str(folder / "learned")])
    main(["compare", *(str(folder / locator) for locator in LOCATORS)])
    main(["watch", str(folder / "learned"), "--gif", str(folder / "episodes.gif")])
    print(f"Done in {time.monotonic() - start:.0f} s. Its files, a GIF among them: {folder}")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    quickstart(Path(arguments[0] if arguments else "runs/quickstart"), int(arguments[1]) if arguments[1:] else None)
