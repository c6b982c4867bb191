"""The files of a run folder: regular ones, read and written without following a link or waiting for a pipe."""

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
_NO_LINK_NO_WAIT = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # not every system has them


class RunError(ValueError):
    """A run folder is not there, is not what it should be, or would be overwritten."""


def require_regular(path: Path) -> None:
    """Raises RunError for a link, a pipe, a device or a folder; what is not there is fine."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(mode), "a device")
        raise RunError(f"{path} must be a regular file, got {kind}: put a copy of the file in its place, or remove it")


def open_file(path: Path, mode: Literal["rb", "ab"] = "rb") -> BinaryIO:
    """Opens a file of a run to read it or to append to it.

    Raises:
        FileNotFoundError: there is none; "ab" makes it.
        RunError: it is no regular file.
    """
    require_regular(path)
    file = builtins.open(path, mode, opener=_open)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # it was replaced since
        file.close()
        raise RunError(f"{path} must be a regular file")
    return file


def _open(name: str, flags: int) -> int:
    return os.open(name, flags | _NO_LINK_NO_WAIT, 0o666)


def read_file(path: Path) -> bytes:
    """What a file of a run holds; errors are those of `open_file`."""
    with open_file(path) as file:
        return file.read()


def replace_file(path: Path, content: str | bytes) -> None:
    """Writes a file of a run whole or not at all; see `ram_gym.files.write_file`.

    Raises:
        RunError: what is there is no regular file.
    """
    require_regular(path)
    write_file(path, content)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """While inside, this process alone trains in a folder. Its death ends that too.

    Args:
        folder: made if need be.

    Raises:
        RunError: another process trains in it; the message names the process, its host and since when.
    """
    folder.mkdir(parents=True, exist_ok=True)
    require_regular(folder / LOCK)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(f"{folder} is being trained{_holder(folder)}: wait for it, or stop it first") from None
    try:
        about = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        replace_file(folder / HOLDER, json.dumps(about) + "\n")
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    """Who holds the lock, as far as it has written that down."""
    try:
        about: Any = json.loads(read_file(folder / HOLDER))
        return f" by process {about['pid']} on {about['host']} since {about['since']}"
    except (OSError, ValueError, TypeError, KeyError):
        return " by another process"
