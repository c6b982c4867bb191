"""`train AGENT ... --seeds 0-2 --out DIR` trains DIR/seed-0, DIR/seed-1 and DIR/seed-2, each in its own process."""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .. import PACKAGE, PROGRAM
from ..terminal import say
from .run_folder import RunFolder


def train_seeds(agent: str, arguments: Sequence[str]) -> bool:
    """Trains several seeds if --seeds is among the arguments of `train AGENT`.

    Finished seeds are skipped, unfinished ones resumed, and the rest begun. At the end it prints each seed's validation
    error, with mean and sample standard deviation.

    Args:
        agent: name of the agent.
        arguments: the arguments that follow it.

    Returns:
        Whether --seeds was among the arguments.

    Raises:
        ValueError: the seeds are not numbers, --out is missing, an option cannot be combined with --seeds, or a folder
            holds a run that another command began.
        SystemExit: a run failed or was interrupted; the exit status is that of the run.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--seeds", "--out"):
        parser.add_argument(option)
    parser.add_argument("--jobs", default="1")
    options, train_arguments = parser.parse_known_args(list(arguments))
    if options.seeds is None:
        return False
    given = {word.partition("=")[0] for word in train_arguments}
    if wrong := sorted(given & {"--seed", "--resume"}):
        raise ValueError(f"{wrong[0]} cannot be combined with --seeds")
    if options.out is None:
        raise ValueError("--seeds needs --out, the folder in which to create seed-0, seed-1, ...")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("--seeds starts its own processes: start it without torchrun")
    if not re.fullmatch(r"[1-9]\d*", options.jobs):
        raise ValueError(f"jobs must be a number of at least 1, got {options.jobs!r}")
    folders = {seed: RunFolder(Path(options.out) / f"seed-{seed}") for seed in parse_seeds(options.seeds)}
    commands = {
        seed: [*train_arguments, "--seed", str(seed), "--out", str(folder.path)]
        for seed, folder in folders.items()
        if not is_complete(folder)
    }
    for seed, command in commands.items():
        if (folders[seed].path / "config.json").exists():
            begun = folders[seed].read_about().get("command", [])
            if begun[-len(command) :] != command:
                raise ValueError(f"{folders[seed].path} holds a run that another command began: choose another --out")
            commands[seed] = ["--resume", str(folders[seed].path)]

    def run(command: list[str]) -> int:
        return subprocess.run([sys.executable, "-m", PACKAGE, "train", agent, *command], check=False).returncode

    with ThreadPoolExecutor(int(options.jobs)) as pool:
        codes = list(pool.map(run, commands.values()))
    if failed := [code for code in codes if code]:
        say(f"{len(failed)} of {len(folders)} seeds are not finished: run the same command again to resume them")
        raise SystemExit(failed[0] if failed[0] > 0 else 128 - failed[0])
    errors = [folder.read_json("results.json")["validation"]["error_percent"] for folder in folders.values()]
    listed = ", ".join(f"{seed}: {error:.2f}" for seed, error in zip(folders, errors, strict=True))
    spread = f", mean {statistics.mean(errors):.2f}, deviation {statistics.stdev(errors):.2f}" if errors[1:] else ""
    say(f"validation error in % of seed {listed}{spread}. Next: {PROGRAM} evaluate {folders[min(folders)].path}")
    return True


def parse_seeds(text: str) -> list[int]:
    """The seeds in a text such as "0-2" or "0,3,5-6", in order.

    Raises:
        ValueError: the text has another form, or names a seed twice.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(f"seeds must be numbers such as 0-2 or 0,3, got {text!r}")
        seeds += range(int(match[1]), int(match[2] or match[1]) + 1)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be named once each, got {text!r}")
    return seeds


def is_complete(folder: RunFolder) -> bool:
    """Whether training of the run is finished."""
    results = folder.read_json("results.json", {}) if (folder.path / "config.json").exists() else {}
    return isinstance(results, dict) and "validation" in results
