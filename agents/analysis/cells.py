"""Cells: numbers as text, and Markdown tables of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from ram_gym.files import escape_markdown, printable


class Markdown(str):
    """A cell that is Markdown already; any other is text, which `markdown_table` escapes."""


def code(text: str) -> Markdown:
    """The text on one line as code in a table's cell; nothing where it is empty."""
    shown = printable(text).replace("`", "'").replace("|", "\\|")  # code knows no escapes but a table's own
    return Markdown(f"`{shown}`" if shown else "")


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; the first `left` columns are aligned left, the others right. Columns without entries go."""
    kept = [column for column in range(len(headings)) if any(row[column] for row in rows)]
    marks = ["---" if column < left else "---:" for column in range(len(headings))]
    lines = [[_show(line[column]) for column in kept] for line in (headings, marks, *rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _show(cell: str) -> str:
    return cell if isinstance(cell, Markdown) else escape_markdown(cell)


def spread(values: Sequence[float | None]) -> tuple[float, float | None] | None:
    """Mean and sample standard deviation of the values that are not None; None where there are too few."""
    measured = [value for value in values if value is not None]
    if not measured:
        return None
    return statistics.mean(measured), statistics.stdev(measured) if len(measured) > 1 else None


def format_number(value: float | None, form: str) -> str:
    """A number; "-" for None."""
    return "-" if value is None else format(value, form)


def format_spread(values: Sequence[float | None]) -> str:
    """Of several values, their mean ± sample standard deviation; else ""."""
    found = spread(values)
    if len(values) < 2 or found is None:
        return ""
    return f"{found[0]:.2f} ± {format_number(found[1], '.2f')}"


def format_errors(values: Sequence[float | None]) -> str:
    """Errors of each seed and, of several, their mean ± sample standard deviation; "" where none was measured."""
    if all(value is None for value in values):
        return ""
    closing = format_spread(values)
    return ", ".join(format_number(value, ".2f") for value in values) + (f" ({closing})" if closing else "")


def format_interval(measured: dict[str, Any] | None) -> str:
    """An evaluation's error with its 95% interval; "" for None."""
    if measured is None:
        return ""
    low, high = measured["interval_percent"]
    return f"{measured['error_percent']:.2f} ({low:.2f} to {high:.2f})"
