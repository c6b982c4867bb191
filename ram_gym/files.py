"""Output that does no harm: files are replaced whole or not at all, and names hold nothing that steers a terminal."""

from __future__ import annotations

import errno
import os
import re
import secrets
from pathlib import Path


def write_file(path: str | os.PathLike[str], content: str | bytes) -> None:
    r"""Writes a file whole or not at all.

    The content goes to a new file in the same folder, then to the disk, and is renamed last. So a full disk, an error
    or a kill leaves what was in the file before, and no other process ever reads a half. A link is followed, and the
    file's permissions stay. A pipe or a device, such as /dev/stdout, is written directly.

    Args:
        path: the file; its folder is made if need be.
        content: text is written as UTF-8; characters that UTF-8 cannot write (surrogates, which stand for the bytes of
            names in other encodings) become escapes such as `\udcff`.

    Raises:
        OSError: it cannot be written; `filename` is the path.
    """
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    try:
        if Path(path).exists() and not Path(path).is_file():
            Path(path).write_bytes(data)
            return
        target = Path(os.path.realpath(path))
        mode = target.stat().st_mode if target.exists() else None
        if mode is not None and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, "Permission denied")
        target.parent.mkdir(parents=True, exist_ok=True)
        _replace(target, data, mode)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}, so the file is not written", os.fspath(path)) from error


def _replace(target: Path, data: bytes, mode: int | None) -> None:
    # A fresh name, created exclusively: nobody else's file and no link can be in its place.
    temporary = target.with_name(f".ram_gym-{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # a file system may report a full disk no earlier
        if mode is not None:
            temporary.chmod(mode & 0o7777)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def printable(text: str) -> str:
    r"""The text on one line, safe to show in a terminal or on a page.

    White space becomes a space. Control characters, which can steer a terminal, and all else that has no shape of its
    own, such as surrogates, become escapes.

    Example:
        >>> printable("red: \x1b[31m\nnext")
        'red: \\x1b[31m next'
    """
    return "".join(_show(character) for character in text)


def _show(character: str) -> str:
    if character.isspace():
        return " "
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


def escape_markdown(text: str) -> str:
    r"""The text on one line, as Markdown that shows it unchanged, in a table's cell too.

    Example:
        >>> escape_markdown("<lambda> | a_b*")
        '\\<lambda> \\| a\\_b\\*'
    """
    return re.sub(r"([\\`*_~$&<|\[\]])", r"\\\1", printable(text))


def escape_csv(text: str) -> str:
    """The text on one line, with a ' in front if a spreadsheet would take it for a formula. Quotes are the writer's.

    Example:
        >>> escape_csv("=1+1"), escape_csv("runs/a")
        ("'=1+1", 'runs/a')
    """
    text = printable(text)
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text
