"""CIFAR-10 and SVHN: torchvision's own download, against a server on this machine that holds small stand-ins."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat
from torchvision import datasets

from ram_gym import DatasetError, GlimpseEnv, load_dataset, sources
from ram_gym import datasets as ours
from tests.test_downloads import Server, files_in

BATCH, NUM_TRAIN, NUM_TEST, VALIDATION = 6, 21, 9, 10
RNG = np.random.default_rng(0)
CIFAR = RNG.integers(0, 256, (6 * BATCH, 3, 32, 32), dtype=np.uint8)
SVHN = RNG.integers(0, 256, (NUM_TRAIN + NUM_TEST, 3, 32, 32), dtype=np.uint8)


def cifar_files() -> dict[str, bytes]:
    """As Alex Krizhevsky wrote them: dicts with rows of pixels, red ones first."""
    files = {}
    for number, name in enumerate([*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]):
        kept = slice(number * BATCH, (number + 1) * BATCH)
        labels = (np.arange(6 * BATCH)[kept] % 10).tolist()
        files[name] = pickle.dumps({"data": CIFAR[kept].reshape(BATCH, -1), "labels": labels}, protocol=2)
    return files | {"batches.meta": pickle.dumps({"label_names": ["x"] * 10})}


def svhn_files() -> dict[str, bytes]:
    """As its authors wrote them: the number of the image is the last axis, and the digit 0 has the label 10."""
    files = {}
    for name, kept in (("train", slice(NUM_TRAIN)), ("test", slice(NUM_TRAIN, None))):
        labels = np.arange(NUM_TRAIN + NUM_TEST)[kept, None] % 10
        file = io.BytesIO()
        savemat(file, {"X": SVHN[kept].transpose(2, 3, 1, 0), "y": np.where(labels == 0, 10, labels).astype(np.uint8)})
        files[f"{name}_32x32.mat"] = file.getvalue()
    return files


def pack(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


CIFAR_FILES, SVHN_FILES = cifar_files(), svhn_files()
SERVED = {"cifar-10-python.tar.gz": pack(CIFAR_FILES), **SVHN_FILES}
FOLDERS = {"cifar10": "cifar-10-batches-py", "svhn": "SVHN"}
FILES = {"cifar10": {name: CIFAR_FILES[name] for name in CIFAR_FILES if name != "batches.meta"}, "svhn": SVHN_FILES}
ASKED = {"cifar10": ["cifar-10-python.tar.gz"], "svhn": list(SVHN_FILES)}


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as server:
        server.files = dict(SERVED)
        address = f"http://127.0.0.1:{server.server_port}/"
        sums = [[name, md5(content)] for name, content in FILES["cifar10"].items()]
        monkeypatch.setattr(datasets.CIFAR10, "url", f"{address}cifar-10-python.tar.gz")
        monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(SERVED["cifar-10-python.tar.gz"]))
        monkeypatch.setattr(datasets.CIFAR10, "train_list", sums[:-1])
        monkeypatch.setattr(datasets.CIFAR10, "test_list", sums[-1:])
        monkeypatch.setattr(
            datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": md5(CIFAR_FILES["batches.meta"])}
        )
        splits = {name[: name.index("_")]: [address + name, name, md5(content)] for name, content in SVHN_FILES.items()}
        monkeypatch.setattr(datasets.SVHN, "split_list", splits)
        monkeypatch.setattr(sources._Cifar, "num_train", 5 * BATCH)
        monkeypatch.setattr(sources._Cifar, "num_test", BATCH)
        monkeypatch.setattr(sources._Svhn, "num_train", NUM_TRAIN)
        monkeypatch.setattr(sources._Svhn, "num_test", NUM_TEST)
        monkeypatch.setattr(ours, "VALIDATION_SIZE", VALIDATION)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def lay(root: Path, name: str) -> Path:
    folder = root / FOLDERS[name]
    folder.mkdir(parents=True)
    for file, content in FILES[name].items():
        (folder / file).write_bytes(content)
    return folder


@pytest.mark.parametrize("name", FOLDERS)
def test_it_is_downloaded_once_checked_and_split(name: str, server: Server, tmp_path: Path) -> None:
    images, num_train = (CIFAR, 5 * BATCH) if name == "cifar10" else (SVHN, NUM_TRAIN)
    places = {
        "train": np.arange(num_train - VALIDATION),
        "validation": np.arange(num_train - VALIDATION, num_train),
        "test": np.arange(num_train, len(images)),
    }
    for split, kept in places.items():
        data = load_dataset(name, split, tmp_path)
        np.testing.assert_array_equal(data.images, images[kept])
        np.testing.assert_array_equal(data.labels, kept % 10)
        assert (data.images.dtype, data.labels.dtype, data.num_classes) == (np.uint8, np.int64, 10)
        assert (data.class_names is None) == (name == "svhn")
        assert server.asked == ASKED[name]
    folder = FOLDERS[name]
    assert files_in(tmp_path) == {folder, *(f"{folder}/{file}" for file in [*FILES[name], "SHA256SUMS"])}
    env = GlimpseEnv(dataset=name, split="test", data_root=str(tmp_path), canvas_size=32)
    env.reset(options={"index": 1})
    np.testing.assert_array_equal(env.canvas, images[num_train + 1])
    assert env.observation_space["glimpse"].shape == (3, 8, 8)  # type: ignore[index]


@pytest.mark.parametrize("name", FOLDERS)
def test_files_of_torchvision_are_verified_and_not_downloaded(name: str, server: Server, tmp_path: Path) -> None:
    folder = lay(tmp_path, name)
    load_dataset(name, "test", tmp_path)
    assert server.asked == []
    sums = (folder / "SHA256SUMS").read_text().split()
    assert sums[::2] == [hashlib.sha256(content).hexdigest() for content in FILES[name].values()]
    if name == "cifar10":  # the archive will do too
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / ASKED[name][0]).write_bytes(SERVED[ASKED[name][0]])
        load_dataset(name, "test", tmp_path / "b")
        assert server.asked == []


@pytest.mark.parametrize("name", FOLDERS)
def test_damage_before_and_after_the_download_is_found(name: str, server: Server, tmp_path: Path) -> None:
    folder = lay(tmp_path, name)
    path = folder / list(FILES[name])[-1]  # of the test split
    content = path.read_bytes()
    path.write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
    for _ in range(2):  # before, and after
        with pytest.raises(DatasetError, match=f"{path} is damaged: its SHA-256 is not that of the published file"):
            load_dataset(name, "test", tmp_path)
        assert server.asked == (ASKED[name] if name == "cifar10" else ASKED[name][-1:])
    path.write_bytes(content)
    assert load_dataset(name, "test", tmp_path).labels[0] == (0 if name == "cifar10" else 1)


class Malice:
    def __reduce__(self) -> Any:
        return (print, ("code has run",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"data": Malice()}), r"UnpicklingError: it holds a builtins\.print, and may hold arrays only"),
        (pickle.dumps({"data": np.zeros((5, 3072), np.uint8), "labels": [0] * 5}), "ValueError: cannot reshape"),
        (
            pickle.dumps({"data": np.zeros((6, 3072), np.uint8), "labels": [10] * 6}),
            "expected uint8 images and 6",
        ),
        (
            pickle.dumps({"data": np.zeros((6, 3072), int), "labels": [1] * 6}),
            "expected uint8 .*, got int64 imag",
        ),
        (pickle.dumps([1]), "TypeError: "),
    ],
)
@pytest.mark.usefixtures("server")
def test_a_strangers_folder_runs_no_code(content: bytes, message: str, tmp_path: Path, capfd: Any) -> None:
    folder = lay(tmp_path, "cifar10")
    (folder / "test_batch").write_bytes(content)
    (folder / "SHA256SUMS").write_text(f"{hashlib.sha256(content).hexdigest()}  test_batch\n")
    with pytest.raises(DatasetError, match=f"is damaged: {message}"):
        load_dataset("cifar10", "test", tmp_path)
    assert capfd.readouterr().out == ""
