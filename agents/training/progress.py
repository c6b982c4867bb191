"""Progress display: a live bar on a terminal, else a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from ..terminal import make_console, say

if TYPE_CHECKING:
    from .learner import Progress

SECONDS_BETWEEN_LINES = 10.0


class Report(Protocol):
    """Shows progress: the share that is done, in [0, 1], a line of text, and the seconds left."""

    def __call__(self, done: float, text: str, seconds_left: float) -> None:
        """Shows it."""


@contextmanager
def show_progress(title: str) -> Iterator[Report]:
    """A progress display on standard error; yields the function that moves it."""
    console = make_console(stderr=True)
    if not console.is_terminal:
        yield _lines(title)
        return
    say(title)
    # It fits into 80 columns. The time left comes first, so that a narrower terminal does not cut it off.
    status = TextColumn("{task.percentage:3.0f}% {task.fields[text]}")
    with Bar(BarColumn(bar_width=6), status, console=console) as bar:
        work = bar.add_task("", total=1.0, text="")

        def report(done: float, text: str, seconds_left: float) -> None:
            bar.update(work, completed=done, text=f"{format_seconds(seconds_left)} left, {text}")

        yield report


def _lines(title: str) -> Report:
    last = [-float("inf")]

    def report(done: float, text: str, seconds_left: float) -> None:
        now = time.monotonic()
        if now - last[0] >= SECONDS_BETWEEN_LINES or done >= 1:
            last[0] = now
            say(f"{title} {100 * done:3.0f}%  {format_seconds(seconds_left)} left, {text}")

    return report


def format_seconds(seconds: float) -> str:
    """Seconds as "42 s", "3 min 05 s" or "2 h 07 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_training(progress: Progress) -> str:
    """The line of text that describes how far a training run has come."""
    parts = [f"epoch {progress.epoch}/{progress.epochs}"]
    if progress.last_metrics is not None:
        parts.append(f"accuracy {progress.last_metrics['train_accuracy_percent']:.1f}%")
        if "validation_error_percent" in progress.last_metrics:
            parts.append(f"val error {progress.last_metrics['validation_error_percent']:.2f}%")
    return ", ".join([*parts, progress.speed])
