"""Pages: Markdown files whose tables are generated from a results folder.

A table is between two comments. The first names a function in tables.py and its arguments:

    <!-- table: runs main/mnist-28/* -->
    <!-- end -->

The text between them is replaced; all other text is written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from .results import INDEX, Results
from .tables import TABLES

PAGES = ("RESULTS.md", "docs/results/*.md", "benchmarks/README.md", "README.md")
"""Files that may have tables, relative to the folder that contains results/."""
_TABLE = re.compile(r"(<!-- table: ([^\n]*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def fill(text: str, results: Results) -> str:
    """The text of a page with its tables generated.

    Raises:
        ValueError: a comment names an unknown table, or its table cannot be made.
    """

    def replace(match: re.Match[str]) -> str:
        name, *arguments = match[2].split()
        if name not in TABLES:
            raise ValueError(f"tables are {', '.join(TABLES)}, got {match[2]!r}")
        return f"{match[1]}{TABLES[name](results, *arguments)}\n{match[4]}"

    filled, count = _TABLE.subn(replace, text)
    if count != text.count("<!-- table:") or count != text.count("<!-- end -->"):
        raise ValueError("each <!-- table: NAME ... --> needs an <!-- end --> on a later line")
    return filled


def stale_files(root: Path) -> Iterator[tuple[Path, str]]:
    """The index and the pages in a folder that differ from what its results/ gives, with the text that they should
    have.

    Raises:
        ValueError: a run is damaged, or a table cannot be made.
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
