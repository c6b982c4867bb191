"""Shared fixtures. MNIST is looked for in --data-root or $RAM_GYM_DATA; without it, tests that need it are skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# OpenMP threads that spin while they wait make the suite many times slower beside any other busy process.
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import numpy as np
import pytest
from torch._subclasses.fake_tensor import FakeTensorMode

from ram_gym import arguments, pyramids, retina, scenes

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--data-root", default=os.environ.get("RAM_GYM_DATA"), help="folder with MNIST (MNIST/raw/...)")


def _mnist_root(config: pytest.Config) -> str | None:
    root = config.getoption("--data-root")
    if root and all((Path(root) / "MNIST" / "raw" / file).is_file() for file in FILES):
        return str(Path(root).absolute())
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if _mnist_root(config) is None:
        skip = pytest.mark.skip(reason="NEEDS MNIST: give --data-root DIR or set RAM_GYM_DATA")
        for item in items:
            if item.get_closest_marker("mnist"):
                item.add_marker(skip)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if _mnist_root(config) is None:
        terminalreporter.write_line(
            "WARNING: MNIST not found, so every test on real MNIST was SKIPPED (--data-root DIR or RAM_GYM_DATA)",
            yellow=True,
            bold=True,
        )


@pytest.fixture(scope="session")
def mnist_root(request: pytest.FixtureRequest) -> str:
    """Folder with MNIST; tests that use it are marked `mnist`."""
    root = _mnist_root(request.config)
    assert root is not None, "mark this test with @pytest.mark.mnist"
    return root


@pytest.fixture(scope="session")
def small_images() -> tuple[np.ndarray, np.ndarray]:
    """Twenty random 6x5 images of five classes."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (20, 6, 5), dtype=np.uint8), np.arange(20) % 5


@pytest.fixture
def deferred(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments are checked as on a GPU: what comes as a tensor is not read, and what is bad is reported later."""
    monkeypatch.setattr(arguments, "_is_host", lambda device: device is None)


@pytest.fixture
def fake_tensors(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors that know their device and shape and have no numbers: reading one, or mixing devices, is an error."""
    monkeypatch.setattr(retina, "_kernel_works", lambda where: False)  # a kernel cannot read them
    kept = (scenes._pairs, scenes._box, pyramids._constants)
    for function in kept:
        function.cache_clear()
    with FakeTensorMode():
        yield
    for function in kept:
        function.cache_clear()
