"""Pages: Markdown files whose tables are written from a results folder.

A table stands between two comments, the first of which names its kind and what to put in it:

    <!-- table: runs main/mnist-28/* -->
    <!-- end -->

What stands between them is replaced; the text around is typed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from .results import INDEX, Results
from .tables import TABLES

PAGES = ("RESULTS.md", "docs/results/*.md", "benchmarks/README.md", "README.md")
"""Where tables may stand, from the folder that results/ is in."""
_TABLE = re.compile(r"(<!-- table: ([^\n]*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def fill(text: str, results: Results) -> str:
    """A page with its tables written anew.

    Raises:
        ValueError: a comment names no kind of table, or what no table can be made of.
    """

    def replace(match: re.Match[str]) -> str:
        kind, *words = match[2].split()
        if kind not in TABLES:
            raise ValueError(f"tables are {', '.join(TABLES)}, got {match[2]!r}")
        return f"{match[1]}{TABLES[kind](results, *words)}\n{match[4]}"

    filled, count = _TABLE.subn(replace, text)
    if count != text.count("<!-- table:") or count != text.count("<!-- end -->"):
        raise ValueError("each <!-- table: KIND ... --> needs an <!-- end --> on a later line")
    return filled


def stale_files(root: Path) -> Iterator[tuple[Path, str]]:
    """The files below a folder that are not what its results/ says, the index among them, and what they should be.

    Raises:
        ValueError: a run is damaged, or a page names a table that cannot be made.
    """
    results = Results(root / "results")
    texts = {results.root / INDEX: results.index()}
    for pattern in PAGES:
        for path in sorted(root.glob(pattern)):
            try:
                texts[path] = fill(path.read_text(encoding="utf-8"), results)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
    for path, text in texts.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            yield path, text
