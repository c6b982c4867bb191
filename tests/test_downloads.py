"""Files of named datasets: checked, downloaded once where they are missing, and what is said if that fails.

The real download of torchvision is played against a server on this machine.
"""

from __future__ import annotations

import gzip
import hashlib
import http.server
import multiprocessing
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
from torchvision import datasets

from ram_gym import DatasetError, GlimpseEnv, load_dataset

FILES = [f"{prefix}-{kind}-ubyte" for prefix in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


def idx_content(name: str, count: int | None = None) -> bytes:
    """An IDX file; image i is filled with i % 251 and label i is i % 10, so that splits can be told apart."""
    count = (60_000 if "train" in name else 10_000) if count is None else count
    numbers = np.arange(count)
    if "images" in name:
        header, content = struct.pack(">4i", 0x803, count, 28, 28), np.repeat((numbers % 251).astype(np.uint8), 784)
    else:
        header, content = struct.pack(">2i", 0x801, count), numbers % 10
    return header + content.astype(np.uint8).tobytes()


CONTENT = {name: idx_content(name) for name in FILES}
PACKED = {f"{name}.gz": gzip.compress(content, 1) for name, content in CONTENT.items()}


class Server(http.server.ThreadingHTTPServer):
    """Serves packed files, KMNIST's to torchvision, and remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = dict(PACKED)
        self.seconds = 0.0  # that each file takes
        self.asked: list[str] = []


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        content = self.server.files.get(self.path[1:])
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()

    def do_GET(self) -> None:
        if self.headers.get("Method") == "HEAD":  # so torchvision asks where a file is
            return self.do_HEAD()
        self.server.asked.append(self.path[1:])
        time.sleep(self.server.seconds)
        self.do_HEAD()
        self.wfile.write(self.server.files.get(self.path[1:], b""))
        return None

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as server:
        monkeypatch.setattr(datasets.KMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        sums = [(name, hashlib.md5(content).hexdigest()) for name, content in PACKED.items()]
        monkeypatch.setattr(datasets.KMNIST, "resources", sums)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(url: str, **kwargs: Any) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fail)


def lay(root: Path, folder: str = "KMNIST", is_recorded: bool = False) -> Path:
    """The files as torchvision leaves them, without their packed ones; the folder they are in."""
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for name, content in CONTENT.items():
        (raw / name).write_bytes(content)
    if is_recorded:
        lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in CONTENT.items()]
        (raw / "SHA256SUMS").write_text("".join(lines))
    return raw


def files_in(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def test_what_is_missing_is_downloaded_once_checked_and_split(server: Server, tmp_path: Path) -> None:
    for split, first, count in (("train", 0, 50_000), ("validation", 50_000, 10_000), ("test", 0, 10_000)):
        data = load_dataset("kmnist", split, tmp_path)
        numbers = np.arange(first, first + count)
        assert (data.images.shape, data.images.dtype) == ((count, 1, 28, 28), np.uint8)
        np.testing.assert_array_equal(data.images[:, 0, 13, 27], numbers % 251)
        np.testing.assert_array_equal(data.labels, numbers % 10)
        assert not data.images.flags.writeable
        assert load_dataset("kmnist", split, str(tmp_path)) is data
        assert server.asked == list(PACKED)
    raw = tmp_path / "KMNIST" / "raw"
    assert files_in(tmp_path) == {"KMNIST", "KMNIST/raw", *(f"KMNIST/raw/{name}" for name in [*FILES, "SHA256SUMS"])}
    assert (raw / "SHA256SUMS").read_text() == (lay(tmp_path / "b", is_recorded=True) / "SHA256SUMS").read_text()


@pytest.mark.parametrize("by_argument", [True, False])
def test_the_folder_is_an_argument_or_a_variable(
    by_argument: bool, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    monkeypatch.setenv("RAM_GYM_DATA", str(wrong if by_argument else right))
    env = GlimpseEnv(dataset="kmnist", split="test", data_root=str(right) if by_argument else None)
    env.reset(options={"index": 258})
    assert (env.canvas == 7).all()
    assert env.label == 8
    assert not wrong.exists()


def load_and_say(root: Path, started: Any) -> None:
    started.wait()
    print(f"{load_dataset('kmnist', 'test', root).labels.sum()} is the sum", flush=True)


def test_several_processes_download_once(server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    server.seconds = 0.3
    fork = multiprocessing.get_context("fork")  # they know the server then
    started = fork.Event()
    processes = [fork.Process(target=load_and_say, args=(tmp_path / "new" / "root", started)) for _ in range(4)]
    for process in processes:
        process.start()
    started.set()
    for process in processes:
        process.join(60)
    out, err = capfd.readouterr()
    assert [process.exitcode for process in processes] == [0] * 4, err
    assert out.count(f"{4500 * 10} is the sum") == 4
    assert server.asked == list(PACKED)
    assert err.count("waiting for another process, which downloads kmnist to") == 3
    assert files_in(tmp_path / "new" / "root") == {
        "KMNIST", "KMNIST/raw", *(f"KMNIST/raw/{name}" for name in [*FILES, "SHA256SUMS"])
    }  # fmt: skip


def test_a_failed_download_leaves_nothing_and_says_what_failed(server: Server, tmp_path: Path) -> None:
    server.files["t10k-images-idx3-ubyte.gz"] = b"<html>Log in to this network</html>"
    for root in (tmp_path, tmp_path / "new" / "root"):
        with pytest.raises(DatasetError, match=r"t10k-images-idx3-ubyte\.gz: .*corrupted") as caught:
            load_dataset("kmnist", "train", root)
        assert "network" not in str(caught.value)
        assert files_in(tmp_path) == set()
    server.files = dict(PACKED)
    left = tmp_path / ".kmnist-killed" / "KMNIST"  # by a download that was killed
    left.mkdir(parents=True)
    assert load_dataset("kmnist", "train", tmp_path).labels[9] == 9
    assert not left.parent.exists()


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "kmnist"], ids="name={}".format)
def test_without_network_one_error_says_what_to_do(name: str, tmp_path: Path) -> None:
    folder = tmp_path / {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}[name] / "raw"
    folder.mkdir(parents=True)
    for file in (FILES[0], "t10k-images.idx3-ubyte"):  # the second as some copies call it
        (folder / file).write_bytes(b"")
    with pytest.raises(DatasetError) as caught:
        GlimpseEnv(dataset=name, split="test", data_root=str(tmp_path))
    message = str(caught.value)
    wanted = ", ".join(FILES[1:])
    assert message.startswith(f"dataset {name!r}: {folder} lacks {wanted} (or each of them packed, as NAME.gz), and ")
    assert f'\n    python -c "import ram_gym; ram_gym.load_dataset({name!r}, data_root={str(tmp_path)!r})"\n' in message
    for word in ("Name or service not known", "RAM_GYM_DATA", "RamGym/Digits-v0"):
        assert word in message
    assert GlimpseEnv(dataset="digits", data_root=str(tmp_path)).reset(seed=0)[0]["glimpse"].shape == (1, 8, 8)


@pytest.mark.parametrize("file", ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: b"",
        lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
        lambda content: b"<html>" + content,
    ],
    ids=["cut", "too long", "empty", "a bit", "no IDX"],
)
def test_damage_after_the_download_is_found(
    damage: Callable[[bytes], bytes], file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in FILES[:2]:
        monkeypatch.setitem(CONTENT, name, b"")  # not read here
    path = lay(tmp_path, is_recorded=True) / file
    path.write_bytes(damage(CONTENT[file]))
    with pytest.raises(DatasetError, match=f"{path} is damaged: .*Remove it, so that it is downloaded again"):
        load_dataset("kmnist", "test", tmp_path)
    path.write_bytes(CONTENT[file])
    assert load_dataset("kmnist", "test", tmp_path).labels[:3].tolist() == [0, 1, 2]


def test_files_without_checksums_are_compared_with_a_download(server: Server, tmp_path: Path) -> None:
    raw = lay(tmp_path)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(idx_content("t10k-labels-idx1-ubyte")[:-1] + b"\0")
    for name in list(PACKED)[:2]:
        (raw / name).write_bytes(PACKED[name])  # what torchvision has left is not downloaded again
    with pytest.raises(DatasetError, match="t10k-labels-idx1-ubyte is damaged: its SHA-256 is not that of the publ"):
        load_dataset("kmnist", "test", tmp_path)
    assert server.asked == list(PACKED)[2:]
    assert load_dataset("kmnist", "train", tmp_path).labels[9] == 9
    (raw / "SHA256SUMS").write_text("nothing of the kind")
    with pytest.raises(DatasetError, match="SHA256SUMS is damaged: a line is not a checksum and a file's name"):
        load_dataset("kmnist", "validation", tmp_path)


@pytest.mark.usefixtures("no_network")
def test_files_that_cannot_be_checked_are_refused(tmp_path: Path) -> None:
    raw = lay(tmp_path)
    with pytest.raises(DatasetError, match=f"{raw} has no SHA256SUMS, which the files would be checked against, and "):
        load_dataset("kmnist", "test", tmp_path)
    assert (raw / FILES[0]).read_bytes() == CONTENT[FILES[0]]


@pytest.mark.parametrize(("split", "count"), [("train", 60_000), ("test", 10_000)])
def test_too_few_images_are_damage(split: str, count: int, tmp_path: Path) -> None:
    raw = tmp_path / "KMNIST" / "raw"
    raw.mkdir(parents=True)
    sums = []
    for name in FILES:
        (raw / name).write_bytes(idx_content(name, 70))
        sums.append(f"{hashlib.sha256(idx_content(name, 70)).hexdigest()}  {name}\n")
    (raw / "SHA256SUMS").write_text("".join(sums))
    with pytest.raises(DatasetError, match=rf"images-idx3-ubyte is damaged: expected an IDX file of {count} x 28"):
        load_dataset("kmnist", split, tmp_path)


@pytest.mark.usefixtures("no_network")
def test_well_formed_files_that_are_not_mnist_are_damage(tmp_path: Path) -> None:
    lay(tmp_path, "MNIST")
    # The first twice: a failure is not remembered as a success.
    for split, prefix in (("test", "t10k"), ("test", "t10k"), ("train", "train")):
        with pytest.raises(DatasetError, match=f"{prefix}-images-idx3-ubyte is damaged: its SHA-256 is not that of"):
            load_dataset("mnist", split, tmp_path)


@pytest.mark.mnist
@pytest.mark.parametrize("file", ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_one_flipped_bit_in_mnist_is_found(file: str, mnist_root: str, tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in FILES:
        content = bytearray(Path(mnist_root, "MNIST", "raw", name).read_bytes())
        content[5_000] ^= name == file
        (raw / name).write_bytes(content)
    with pytest.raises(DatasetError, match=f"{file} is damaged: its SHA-256 is not that of the published file. Remove"):
        load_dataset("mnist", "test", tmp_path)


@pytest.mark.mnist
def test_it_loads_where_md5_is_forbidden(mnist_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(content: bytes = b"", *, usedforsecurity: bool = True) -> Any:
        if usedforsecurity:
            raise ValueError("[digital envelope routines] unsupported")
        return md5(content, usedforsecurity=False)

    md5 = hashlib.md5
    monkeypatch.setattr(hashlib, "md5", forbidden)
    for name in ("MNIST", "FashionMNIST"):
        (tmp_path / name).symlink_to(Path(mnist_root, name))
    assert load_dataset("mnist", "test", tmp_path).labels[:5].tolist() == [7, 2, 1, 0, 4]


@pytest.mark.mnist
@pytest.mark.parametrize(
    ("split", "prefix", "kept", "counts"),
    [
        ("train", "train", slice(50_000), [4932, 5678, 4968, 5101, 4859, 4506, 4951, 5175, 4842, 4988]),
        ("validation", "train", slice(50_000, None), [991, 1064, 990, 1030, 983, 915, 967, 1090, 1009, 961]),
        ("test", "t10k", slice(None), [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
    ],
)
def test_mnist_splits(split: str, prefix: str, kept: slice, counts: list[int], mnist_root: str) -> None:
    raw = Path(mnist_root, "MNIST", "raw")
    images = np.frombuffer((raw / f"{prefix}-images-idx3-ubyte").read_bytes(), np.uint8, offset=16)
    labels = np.frombuffer((raw / f"{prefix}-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
    data = load_dataset("mnist", split, mnist_root)
    assert np.array_equal(data.images, images.reshape(-1, 1, 28, 28)[kept])
    assert np.array_equal(data.labels, labels[kept])
    assert len(data.labels) == (50_000 if split == "train" else 10_000)
    assert np.bincount(data.labels).tolist() == counts
