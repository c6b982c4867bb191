"""Terminal output of commands: lines and tables, errors in one line, and exit statuses."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ram_gym.files import printable

from .extras import how_to_install

CLOSED_PIPE = 141
"""Exit status if the reader of the output has closed the pipe: the one that a shell reports after SIGPIPE."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise  # the current BrokenPipeError; rich would exit with status 1


def make_console(*, stderr: bool = False) -> Console:
    """A rich console. Print strings as `Text`, so that rich does not read names as markup."""
    return _Console(stderr=stderr)


def say(text: str, style: str = "") -> None:
    """Prints a line on standard error."""
    make_console(stderr=True).print(Text(printable(text), style), soft_wrap=True, highlight=False)


def show_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], note: str = "") -> None:
    """Prints a table on standard output: a title, rows with a cell for each heading, and a note below.

    The first column is text, the others are numbers. Title and note may be wider than the table.
    """
    table = Table()
    for number, heading in enumerate(headings):
        table.add_column(_text(heading), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(_text, row))
    console = make_console()
    console.print(Text(printable(title), "bold"))
    console.print(table)
    if note:
        console.print(Text(printable(note), "dim"))


def _text(cell: str) -> Text:
    return Text("\n".join(map(printable, cell.split("\n"))))


@contextmanager
def command_ending() -> Iterator[None]:
    """Ends the process with one line and an exit status if the command inside raises an error.

    Raises:
        SystemExit: 2 for an error, 130 for an interrupt, `CLOSED_PIPE` if the reader of the output has closed it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # escape characters that the terminal cannot write
    try:
        try:
            yield
            if sys.stdout is not None:
                sys.stdout.flush()
        except (ValueError, OSError, ImportError) as error:
            if isinstance(error, BrokenPipeError) and error.filename is None:
                raise
            notes = getattr(error, "__notes__", [])  # they name the policy that raised the error
            say(f"error: {'; '.join([str(error), *notes])}{how_to_install(error)}", "red")
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            say("Interrupted.")
            raise SystemExit(130) from None
    except BrokenPipeError:
        raise SystemExit(CLOSED_PIPE) from None
    finally:
        for stream in (sys.stdout, sys.stderr):
            _discard_unwritten(stream)


def _discard_unwritten(stream: TextIO | None) -> None:
    """Discards output that a stream can no longer write; else Python prints an error at exit."""
    if stream is None:  # it was closed before the command began
        return
    try:
        stream.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
