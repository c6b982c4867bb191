"""What commands show, and how they end: lines, tables, errors in one line, a closed pipe."""

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
"""Exit status of a command whose output nobody reads any more: what a shell reports of one that SIGPIPE ended."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise  # the BrokenPipeError that is being handled: rich would exit by itself, with status 1


def make_console(*, stderr: bool = False) -> Console:
    """The console to show things on; strings go into it as `Text`, so that no name is taken for markup."""
    return _Console(stderr=stderr)


def say(text: str, style: str = "") -> None:
    """One line on standard error."""
    make_console(stderr=True).print(Text(printable(text), style), soft_wrap=True, highlight=False)


def show_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], note: str = "") -> None:
    """A table on standard output: title, rows of as many cells as headings, and a note below.

    The first column is text, the others numbers. Title and note are as wide as the terminal, not as the table.
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
    """Makes what a command raises the end of the process, in one line.

    Raises:
        SystemExit: 2 for an error, 130 for an interrupt, `CLOSED_PIPE` where nobody reads the output any more.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot write is no error
    try:
        try:
            yield
            if sys.stdout is not None:
                sys.stdout.flush()
        except (ValueError, OSError, ImportError) as error:
            if isinstance(error, BrokenPipeError) and error.filename is None:
                raise
            notes = getattr(error, "__notes__", [])  # they say whose policy it was
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
    """Lets what a stream cannot write go nowhere, of which Python would complain when it ends."""
    if stream is None:  # it was closed before the command began
        return
    try:
        stream.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
