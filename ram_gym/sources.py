"""The named datasets that torchvision downloads: which files hold each one, and how these are read."""

from __future__ import annotations

import dataclasses
import io
import math
import pickle
import shutil
import struct
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np


class DatasetError(ValueError):
    """A dataset is missing, damaged, or not what it should be."""


def damaged(path: Path, why: str) -> DatasetError:
    """The error for a file that is not what was published."""
    return DatasetError(f"{path} is damaged: {why}. Remove it, so that it is downloaded again.")


@dataclasses.dataclass(frozen=True)
class Source(ABC):
    """One named dataset: which files hold it, how torchvision downloads them, and how they are read."""

    torchvision_name: str
    class_names: tuple[str, ...] | None = None
    """None where the classes are the digits that their numbers say."""
    sha256: dict[str, str] = dataclasses.field(default_factory=dict)
    """Of each file, by its name; empty: recorded after a download."""

    train_files: ClassVar[tuple[str, ...]]
    test_files: ClassVar[tuple[str, ...]]
    num_train: ClassVar[int]
    num_test: ClassVar[int]
    """Images of the two halves."""
    is_centred: ClassVar[bool] = False
    """Whether each image shows one thing on black, in its middle, rather than a scene."""
    packed: ClassVar[str] = ""
    """What may lie in the folder instead of the files, for a message."""

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all files."""
        return self.train_files + self.test_files

    @property
    @abstractmethod
    def folder(self) -> str:
        """Where the files lie below the data root; torchvision's choice."""

    @abstractmethod
    def fetch(self, root: Path, staging: Path) -> None:
        """Lets torchvision verify or download the files to staging / folder.

        Args:
            root: the data root. What lies there and torchvision can verify is copied, so that it is not downloaded.
            staging: an empty folder.
        """

    @abstractmethod
    def parse(self, contents: dict[Path, bytes], num: int) -> tuple[np.ndarray, np.ndarray]:
        """The images, uint8 (num, C, H, W), and the labels, integers (num,) in [0, 10), of one half's files.

        Args:
            contents: of the training files, or of the test files, in their order.
            num: number of images.

        Raises:
            DatasetError, or any other error: the files do not hold that.
        """


class _Idx(Source):
    """MNIST and the datasets that look like it, in files of the IDX format."""

    train_files = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
    test_files = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    num_train, num_test = 60_000, 10_000
    is_centred = True
    packed = " (or each of them packed, as NAME.gz)"

    @property
    def folder(self) -> str:
        return f"{self.torchvision_name}/raw"

    def fetch(self, root: Path, staging: Path) -> None:
        from torchvision import datasets

        (staging / self.folder).mkdir(parents=True)
        for packed in (root / self.folder).glob("*.gz"):
            shutil.copy(packed, staging / self.folder)
        base = getattr(datasets, self.torchvision_name)
        # A class of the same name, since torchvision names the folder after it; only to download, not to read.
        own = {"_check_legacy_exist": lambda _: False, "_load_data": lambda _: (None, None)}
        type(base.__name__, (base,), own)(staging, download=True)

    def parse(self, contents: dict[Path, bytes], num: int) -> tuple[np.ndarray, np.ndarray]:
        (images_path, images), (labels_path, labels) = contents.items()
        return _read_idx(images_path, images, (num, 28, 28))[:, None], _read_idx(labels_path, labels, (num,))


def _read_idx(path: Path, content: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """The bytes of an IDX file as uint8 of that shape.

    With NumPy, since PyTorch's threads hang in a process that was forked from one that has used them.
    """
    header = struct.pack(f">{1 + len(shape)}i", 0x800 + len(shape), *shape)
    if not content.startswith(header) or len(content) != len(header) + math.prod(shape):
        raise damaged(path, f"expected an IDX file of {' x '.join(map(str, shape))} bytes")
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


class _Cifar(Source):
    """CIFAR-10, in pickles of arrays."""

    train_files = tuple(f"data_batch_{number}" for number in range(1, 6))
    test_files = ("test_batch",)
    num_train, num_test = 50_000, 10_000
    folder = "cifar-10-batches-py"
    archive: ClassVar[str] = "cifar-10-python.tar.gz"

    def fetch(self, root: Path, staging: Path) -> None:
        from torchvision import datasets

        if (root / self.folder).is_dir():
            shutil.copytree(root / self.folder, staging / self.folder)
        if (root / self.archive).is_file():
            shutil.copy(root / self.archive, staging)
        # Without the file of the classes' names, which are written here.
        type("CIFAR10", (datasets.CIFAR10,), {"_load_meta": lambda _: None})(staging, download=True)

    def parse(self, contents: dict[Path, bytes], num: int) -> tuple[np.ndarray, np.ndarray]:
        batches = [_ArraysOnly(io.BytesIO(content), encoding="latin1").load() for content in contents.values()]
        images = np.concatenate([batch["data"] for batch in batches]).reshape(num, 3, 32, 32)
        return images, np.concatenate([batch["labels"] for batch in batches])


class _ArraysOnly(pickle.Unpickler):
    """Reads pickles of NumPy arrays, lists, dicts and strings. Others could run code when they are read."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuses everything but what an array is made of."""
        multiarray = ("numpy.core.multiarray", "numpy._core.multiarray")
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")} or (
            module in multiarray and name == "_reconstruct"
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds a {module}.{name}, and may hold arrays only")


class _Svhn(Source):
    """SVHN (cropped digits), in files of MATLAB."""

    train_files = ("train_32x32.mat",)
    test_files = ("test_32x32.mat",)
    num_train, num_test = 73_257, 26_032
    folder = "SVHN"

    def fetch(self, root: Path, staging: Path) -> None:
        from torchvision import datasets

        (staging / self.folder).mkdir()
        for file in self.files:
            if (root / self.folder / file).is_file():
                shutil.copy(root / self.folder / file, staging / self.folder)
        for split in ("train", "test"):
            datasets.SVHN(staging / self.folder, split, download=True)

    def parse(self, contents: dict[Path, bytes], num: int) -> tuple[np.ndarray, np.ndarray]:
        from scipy.io import loadmat

        (content,) = contents.values()
        arrays = loadmat(io.BytesIO(content))
        images = arrays["X"].transpose(3, 2, 0, 1).reshape(num, 3, 32, 32)
        return images, arrays["y"].reshape(-1) % 10  # the digit 0 has label 10


_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_KUZUSHIJI = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
_CIFAR_10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

SOURCES: dict[str, Source] = {
    "mnist": _Idx(
        "MNIST",
        sha256={
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
    ),
    "fashion-mnist": _Idx(
        "FashionMNIST",
        _FASHION,
        sha256={
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
    ),
    "kmnist": _Idx("KMNIST", _KUZUSHIJI),
    "cifar10": _Cifar("CIFAR10", _CIFAR_10),
    "svhn": _Svhn("SVHN"),
}

NAMES = ("digits", *SOURCES)
"""All datasets that have a name; the digits come with scikit-learn."""
