"""Files are replaced whole or not at all, and names that are shown hold nothing that steers a terminal."""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ram_gym import save_gif
from ram_gym.files import printable, write_file


@contextmanager
def full_disk(free_bytes: int = 1000) -> Iterator[None]:
    """No file can grow beyond so many bytes: a write fails in its middle, as on a disk that fills up."""
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("content", ["x" * 5000, b"x" * 5000])
def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "new" / "table.csv"
    write_file(path, "old")
    with full_disk(), pytest.raises(OSError, match=r"not written: .*table\.csv") as raised:
        write_file(path, content)
    assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, str(path))
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]
    write_file(path, content)
    assert path.stat().st_size == 5000


def test_a_gif_on_a_full_disk(tmp_path: Path) -> None:
    frames = list(np.random.default_rng(0).integers(0, 256, (3, 60, 60, 3), dtype=np.uint8))
    path = tmp_path / "episode.gif"
    save_gif(frames[:1], path)
    old = path.read_bytes()
    with full_disk(), pytest.raises(OSError, match=r"episode\.gif"):
        save_gif(frames, path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_permissions_and_links_stay(tmp_path: Path) -> None:
    path, link, plain = tmp_path / "real.md", tmp_path / "link.md", tmp_path / "plain.md"
    plain.write_text("")
    write_file(path, "a")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    path.chmod(0o640)
    link.symlink_to(path)
    write_file(link, "b")
    assert link.is_symlink()
    assert path.read_text() == "b"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_read_only_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("old")
    path.chmod(0o444)
    with pytest.raises(PermissionError, match=r"a\.md"):
        write_file(path, "new")
    assert path.read_text() == "old"


def test_pipes_and_devices_are_written_directly(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    write_file(f"/dev/fd/{writer}", "through a pipe")
    assert os.read(reader, 100) == b"through a pipe"
    os.close(reader)
    with pytest.raises(OSError, match="/dev/full") as raised:
        write_file("/dev/full", "x")
    os.close(writer)
    assert raised.value.errno == errno.ENOSPC
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        write_file(tmp_path, "x")


def test_text_is_utf_8_whatever_is_in_it(tmp_path: Path) -> None:
    write_file(tmp_path / "a.md", "é ± \udcff")
    assert (tmp_path / "a.md").read_bytes() == "é ± \\udcff".encode()


def test_what_steers_a_terminal_is_shown_as_an_escape() -> None:
    assert printable("runs/ram-é, «5» ± 1 …") == "runs/ram-é, «5» ± 1 …"
    assert printable("a\x1b]0;title\x07b") == "a\\x1b]0;title\\x07b"
    assert printable("two\nlines\tand\u2028three") == "two lines and three"
    assert printable(os.fsdecode(b"run-\xff")) == "run-\\udcff"
    assert printable("right-to-left \u202e mark\x9b2J") == "right-to-left \\u202e mark\\x9b2J"
