"""Files of named datasets: checked before they are read, and downloaded once where they are missing.

A file is read only if its SHA-256 is right. The right one is written here or, for a dataset that has none here, was
recorded beside the file when the file came from a download whose own checksum torchvision had verified.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from ram_gym.sources import SOURCES, DatasetError, Source, damaged

DATA_ROOT_VARIABLE = "RAM_GYM_DATA"
CHECKSUMS = "SHA256SUMS"
"""Name of the file of recorded checksums, as `sha256sum` writes and reads it."""


def read(name: str, is_train: bool, root: Path) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of one half of a named dataset, downloaded where they are missing.

    Args:
        name: one of SOURCES.
        is_train: the training images, or the test images.
        root: absolute path of the folder that holds the datasets as torchvision lays them out.

    Returns:
        images uint8 (N, C, H, W), labels integers (N,) in [0, 10).

    Raises:
        DatasetError: a file is damaged, or is missing and could not be downloaded.
    """
    source = SOURCES[name]
    folder = root / source.folder
    if lacks(name, root):
        _download_once(name, root)
    sums = source.sha256 or _recorded(folder)
    files = source.train_files if is_train else source.test_files
    contents = {folder / file: _read_checked(folder / file, sums) for file in files}
    try:
        images, labels = source.parse(contents, source.num_train if is_train else source.num_test)
    except DatasetError:
        raise
    except Exception as error:
        raise damaged(folder / files[0], " ".join(f"{type(error).__name__}: {error}".split())) from error
    if images.dtype != np.uint8 or labels.shape != (len(images),) or not 0 <= labels.min() <= labels.max() <= 9:
        got = f"{images.dtype} images and {labels.shape} labels of {labels.min()} to {labels.max()}"
        raise damaged(folder, f"expected uint8 images and {len(images)} labels of 0 to 9, got {got}")
    return images, labels


def lacks(name: str, root: Path) -> str:
    """What a named dataset lacks in a folder, in words; empty if it has all. Arguments are those of `read`."""
    source = SOURCES[name]
    folder = root / source.folder
    missing = [file for file in source.files if not (folder / file).is_file()]
    if missing:
        return f"{folder} lacks {', '.join(missing)}{source.packed}"
    if not source.sha256 and not _recorded(folder):
        return f"{folder} has no {CHECKSUMS}, which the files would be checked against"
    return ""


def _read_checked(path: Path, sums: dict[str, str]) -> bytes:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sums.get(path.name):
        raise damaged(path, "its SHA-256 is not that of the published file")
    return content


def _recorded(folder: Path) -> dict[str, str]:
    try:
        lines = (folder / CHECKSUMS).read_text("utf-8").splitlines()
        return {file: digest for digest, file in (line.split() for line in lines)}
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise damaged(folder / CHECKSUMS, "a line is not a checksum and a file's name") from error


def _download_once(name: str, root: Path) -> None:
    """Downloads what is missing, unless another process does it first. A failure leaves no file and no folder."""
    lack = lacks(name, root)
    new_folders = [path for path in (root, *root.parents) if not path.exists()]
    try:
        with _alone(root / f".{name}.lock", f"ram_gym: waiting for another process, which downloads {name} to {root}"):
            if lacks(name, root):
                for left in root.glob(f".{name}-*"):  # by a download that was killed
                    shutil.rmtree(left, ignore_errors=True)
                with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=root, ignore_cleanup_errors=True) as staging:
                    _download(SOURCES[name], root, Path(staging))
    except Exception as error:
        command = f'python -c "import ram_gym; ram_gym.load_dataset({name!r}, data_root={str(root)!r})"'
        raise DatasetError(
            f"dataset {name!r}: {lack}, and the download failed: {' '.join(str(error).split())}\n"
            f"Try again, or download it elsewhere by\n    {command}\n"
            f"and point data_root (or ${DATA_ROOT_VARIABLE}) at a copy of that folder. "
            "The digits need no files: task digits, RamGym/Digits-v0."
        ) from error
    finally:
        for path in new_folders:
            with suppress(OSError):  # it is not empty
                path.rmdir()


@contextmanager
def _alone(path: Path, message: str) -> Iterator[None]:
    """Holds the lock of that file, and removes the file at the end. Prints the message if it has to wait."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(message, file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            path.unlink()
        lock.release()


def _download(source: Source, root: Path, staging: Path) -> None:
    """Downloads to a folder of its own, then puts what is missing in place, each file whole or not at all."""
    source.fetch(root, staging)
    new, folder = staging / source.folder, root / source.folder
    if not source.sha256:
        sums = [f"{hashlib.sha256((new / file).read_bytes()).hexdigest()}  {file}\n" for file in source.files]
        (new / CHECKSUMS).write_text("".join(sums), "utf-8")
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.files:
        if not (folder / file).exists():  # files of the user stay: their checksums tell whether they are right
            (new / file).replace(folder / file)
    if not source.sha256:
        (new / CHECKSUMS).replace(folder / CHECKSUMS)
