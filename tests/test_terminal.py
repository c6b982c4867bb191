"""What commands show on a terminal."""

from __future__ import annotations

import os
from typing import Any

import pytest

from agents.terminal import command_ending, say, show_table
from agents.training.environment import describe_environment
from ram_gym import get_task


def test_titles_and_notes_are_as_wide_as_the_terminal(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    title, note = (
        "errors of policies on the scenes of one task",
        "a note that is much longer than a column of the table",
    )
    show_table(title, ["policy"], [["a"]], note)
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0], lines[-1]) == (title, note)
    assert max(map(len, lines[1:-1])) < 20


def test_names_are_neither_markup_nor_escape_sequences(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    names = ["[bold]a[/bold] [/x]", ":smile:", "\x1b[31mred", os.fsdecode(b"run-\xff"), "a\nb"]
    shown = ["[bold]a[/bold] [/x]", ":smile:", "\\x1b[31mred", "run-\\udcff"]
    for name in names:
        show_table(name, [name], [[name]], name)
        say(name)
    written = capsys.readouterr()
    for name in shown:
        assert written.out.count(name) == 4
        assert written.err.count(name) == 1
    assert "\x1b" not in written.out + written.err
    assert "a b\n" in written.err


def test_errors_are_one_line_whatever_they_hold(capsys: Any) -> None:
    for error in (ValueError("two\nlines \x1b[31m"), OSError(28, "No space", os.fsdecode(b"run-\xff"))):
        error.add_note("raised by policy 'a'")
        with pytest.raises(SystemExit) as stopped, command_ending():
            raise error
        assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "error: two lines \\x1b[31m; raised by policy 'a'\n"
        "error: [Errno 28] No space: 'run-\\udcff'; raised by policy 'a'\n"
    )


def test_an_interrupt_and_a_closed_pipe_have_the_exit_status_of_a_shell(capsys: Any) -> None:
    for error, status in ((KeyboardInterrupt(), 130), (BrokenPipeError(32, "Broken pipe"), 141)):
        with pytest.raises(SystemExit) as stopped, command_ending():
            raise error
        assert stopped.value.code == status
    assert capsys.readouterr().err == "Interrupted.\n"
    with pytest.raises(SystemExit) as stopped, command_ending():
        raise BrokenPipeError(32, "Broken pipe", "table.csv")  # a file, so it is an error
    assert stopped.value.code == 2


def test_an_environment_is_described_by_what_differs_from_its_task() -> None:
    config = get_task("cluttered-60").config
    assert describe_environment("cluttered-60", config.replace(split="test", data_root="x")) == "cluttered-60"
    other = config.replace(composition="overwrite", num_glimpses=5, num_clutter=1, patch_size=9, dataset="kmnist")
    text = "cluttered-60, kmnist, 1 clutter, overwrite, 5 glimpses, patch size 9"
    assert describe_environment("cluttered-60", other) == text
    assert describe_environment("digits", get_task("digits").config.replace(num_scales=2)) == "digits, 2 scales"
