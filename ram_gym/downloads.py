"""Named datasets that torchvision downloads: their files are checked, and fetched once where they are missing.

A file is used only if its SHA-256 is right: the one written here or, for a dataset that has none here, the one that was
recorded beside it when it was unpacked from a download whose own checksum torchvision has verified.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

DATA_ROOT_VARIABLE = "RAM_GYM_DATA"
CHECKSUMS = "SHA256SUMS"
"""Name of the file of recorded checksums, as `sha256sum` writes and reads it."""


class DatasetError(ValueError):
    """A dataset is not there, or is not what it should be."""


class _Source(NamedTuple):
    torchvision_name: str
    sha256: dict[str, str]  # of the unpacked files, by their names; empty: recorded after a download


SOURCES = {
    "mnist": _Source(
        "MNIST",
        {
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
    ),
    "fashion-mnist": _Source(
        "FashionMNIST",
        {
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
    ),
    "kmnist": _Source("KMNIST", {}),
}
_FILES = tuple(SOURCES["mnist"].sha256)


def read(name: str, is_train: bool, root: Path) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of one half of a named dataset, downloaded where they are missing.

    Args:
        name: one of SOURCES.
        is_train: the training images, or the test images.
        root: absolute path of the folder that holds the datasets as torchvision lays them out.

    Returns:
        images uint8 (60_000 or 10_000, 28, 28), labels uint8 (60_000 or 10_000,) in [0, 10).

    Raises:
        DatasetError: a file is damaged, or is missing and could not be downloaded.
    """
    source = SOURCES[name]
    folder = root / source.torchvision_name / "raw"
    if lacks(name, root):
        _download_once(name, root, folder)
    sums = source.sha256 or _recorded(folder)
    prefix, count = ("train", 60_000) if is_train else ("t10k", 10_000)
    images = _read_idx(folder / f"{prefix}-images-idx3-ubyte", sums, (count, 28, 28))
    labels = _read_idx(folder / f"{prefix}-labels-idx1-ubyte", sums, (count,))
    if labels.max() > 9:
        raise _damaged(folder, f"expected labels 0 to 9, got {labels.max()}")
    return images, labels


def lacks(name: str, root: Path) -> str:
    """What a named dataset lacks in a folder, in words; empty if it has all. Arguments are those of `read`."""
    source = SOURCES[name]
    return _needs(source, root / source.torchvision_name / "raw")


def _read_idx(path: Path, sums: dict[str, str], shape: tuple[int, ...]) -> np.ndarray:
    """What an IDX file of bytes holds, uint8 of that shape.

    With NumPy, since PyTorch's threads hang in a process that was forked from one that has used them.
    """
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sums.get(path.name):
        raise _damaged(path, "its SHA-256 is not that of the published file")
    header = struct.pack(f">{1 + len(shape)}i", 0x800 + len(shape), *shape)
    if not content.startswith(header) or len(content) != len(header) + math.prod(shape):
        raise _damaged(path, f"expected an IDX file of {' x '.join(map(str, shape))} bytes")
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


def _needs(source: _Source, folder: Path) -> str:
    """What a dataset lacks, in words; empty if it has all."""
    missing = [file for file in _FILES if not (folder / file).is_file()]
    if missing:
        return f"{folder} lacks {', '.join(missing)} (or each of them packed, as NAME.gz)"
    if not source.sha256 and not _recorded(folder):
        return f"{folder} has no {CHECKSUMS}, which the files would be checked against"
    return ""


def _recorded(folder: Path) -> dict[str, str]:
    try:
        lines = (folder / CHECKSUMS).read_text("utf-8").splitlines()
        return {file: digest for digest, file in (line.split() for line in lines)}
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise _damaged(folder / CHECKSUMS, "a line is not a checksum and a file's name") from error


def _damaged(path: Path, why: str) -> DatasetError:
    return DatasetError(f"{path} is damaged: {why}. Remove it, so that it is downloaded again.")


def _download_once(name: str, root: Path, folder: Path) -> None:
    """Downloads what is missing, unless another process does it first. A failure leaves no file and no folder."""
    source = SOURCES[name]
    lack = _needs(source, folder)
    new_folders = [path for path in (root, *root.parents) if not path.exists()]
    try:
        with _alone(root / f".{name}.lock", f"ram_gym: waiting for another process, which downloads {name} to {root}"):
            if _needs(source, folder):
                for left in root.glob(f".{name}-*"):  # by a download that was killed
                    shutil.rmtree(left, ignore_errors=True)
                with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=root, ignore_cleanup_errors=True) as staging:
                    _download(source, folder, Path(staging))
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
    """Holds the lock of that file, which goes with it; whoever has to wait for it reads the message."""
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


def _download(source: _Source, folder: Path, staging: Path) -> None:
    """Downloads to a folder of its own, then puts what is missing in place, each file whole or not at all."""
    from torchvision import datasets

    raw = staging / source.torchvision_name / "raw"
    raw.mkdir(parents=True)
    for packed in folder.glob("*.gz"):  # which torchvision checks, and downloads only if it is not right
        shutil.copy(packed, raw)
    base = getattr(datasets, source.torchvision_name)
    # Under its own name, which is its folder's; only to download, not to read.
    own = {"_check_legacy_exist": lambda _: False, "_load_data": lambda _: (None, None)}
    type(base.__name__, (base,), own)(staging, download=True)
    if not source.sha256:
        sums = [f"{hashlib.sha256((raw / file).read_bytes()).hexdigest()}  {file}\n" for file in _FILES]
        (raw / CHECKSUMS).write_text("".join(sums), "utf-8")
    folder.mkdir(parents=True, exist_ok=True)
    for file in _FILES:
        if not (folder / file).exists():  # what is there stays: its checksum tells whether it is right
            (raw / file).replace(folder / file)
    if not source.sha256:
        (raw / CHECKSUMS).replace(folder / CHECKSUMS)
