"""Formats numbers for table cells, and makes Markdown tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from ram_gym.files import escape_markdown, printable


class Markdown(str):
    """A cell in Markdown. `markdown_table` escapes all other cells."""


def code(text: str) -> Markdown:
    """The text as inline code for a table cell; an empty cell for an empty text."""
    shown = printable(text).replace("`", "'").replace("|", "\\|")  # inline code in a table can escape | only
    return Markdown(f"`{shown}`" if shown else "")


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; the first `left` columns are aligned left, the others right. Empty columns are left out."""
    kept = [column for column in range(len(headings)) if any(row[column] for row in rows)]
    marks = ["---" if column < left else "---:" for column in range(len(headings))]
    lines = [[_show(line[column]) for column in kept] for line in (headings, marks, *rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _show(cell: str) -> str:
    return cell if isinstance(cell, Markdown) else escape_markdown(cell)


def spread(values: Sequence[float | None]) -> tuple[float, float | None] | None:
    """Mean and sample standard deviation of the values that are not None. The deviation of one value is None, and so is
    the result for no values.
    """
    measured = [value for value in values if value is not None]
    if not measured:
        return None
    return statistics.mean(measured), statistics.stdev(measured) if len(measured) > 1 else None


def format_number(value: float | None, form: str) -> str:
    """A number in a format; "-" for None."""
    return "-" if value is None else format(value, form)


def format_spread(values: Sequence[float | None]) -> str:
    """Mean ± sample standard deviation of several values; "" for fewer than two."""
    mean_and_deviation = spread(values)
    if len(values) < 2 or mean_and_deviation is None:
        return ""
    mean, deviation = mean_and_deviation
    return f"{mean:.2f} ± {format_number(deviation, '.2f')}"


def format_errors(values: Sequence[float | None]) -> str:
    """The error of each seed and, for several, their mean ± sample standard deviation; "" if none was measured."""
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
