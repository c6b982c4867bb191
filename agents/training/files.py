"""Files of a run folder: regular files only, opened without following links and without waiting for pipes."""

from __future__ import annotations

import builtins
import json
import os
import platform
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

from filelock import FileLock, Timeout

from ram_gym.files import write_file

LOCK, HOLDER = ".training.lock", ".training.json"
_NO_LINK_NO_WAIT = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # Windows has neither


class RunError(ValueError):
    """A run folder is missing, damaged or of another kind, or would be overwritten."""


def require_regular(path: Path) -> None:
    """Raises RunError for a link, a pipe, a device or a folder. A missing file is fine."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        names = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        file_type = names.get(stat.S_IFMT(mode), "a device")
        raise RunError(
            f"{path} must be a regular file, got {file_type}: put a copy of the file in its place, or remove it"
        )


def open_file(path: Path, mode: Literal["rb", "ab"] = "rb") -> BinaryIO:
    """Opens a file of a run to read it or to append to it.

    Raises:
        FileNotFoundError: there is no such file, and the mode is "rb"; "ab" creates it.
        RunError: it is not a regular file.
    """
    require_regular(path)
    file = builtins.open(path, mode, opener=_open)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # it was replaced after require_regular
        file.close()
        raise RunError(f"{path} must be a regular file")
    return file


def _open(name: str, flags: int) -> int:
    return os.open(name, flags | _NO_LINK_NO_WAIT, 0o666)


def read_file(path: Path) -> bytes:
    """The content of a file of a run; errors are those of `open_file`."""
    with open_file(path) as file:
        return file.read()


def replace_file(path: Path, content: str | bytes) -> None:
    """Writes a file of a run atomically; see `ram_gym.files.write_file`.

    Raises:
        RunError: something other than a regular file has this name.
    """
    require_regular(path)
    write_file(path, content)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder, so that no other process trains in it. The lock ends with the process.

    Args:
        folder: the folder; it is created if it does not exist.

    Raises:
        RunError: another process holds the lock; the message names the process, its host and the time it began.
    """
    folder.mkdir(parents=True, exist_ok=True)
    require_regular(folder / LOCK)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(f"{folder} is being trained{_holder(folder)}: wait for it, or stop it first") from None
    try:
        holder = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        replace_file(folder / HOLDER, json.dumps(holder) + "\n")
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    """The process that holds the lock, from the file that it writes, for an error message."""
    try:
        holder: Any = json.loads(read_file(folder / HOLDER))
        return f" by process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, TypeError, KeyError):
        return " by another process"
