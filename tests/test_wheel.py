"""What pip installs works from an empty folder: the same agents, under the command `ram-gym`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the wheel holds, and the command."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy, since building leaves files
    source.mkdir()
    for name in ("ram_gym", "agents", "pretrained"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ["--quiet", "--no-deps", "--disable-pip-version-check", "--no-build-isolation"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "-w", folder, source], check=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def ram_gym(site: Path, folder: Path, *arguments: str) -> str:
    """What a command prints, run in a folder with nothing but the wheel in front of the other packages."""
    code = "import sys; from ram_gym.agents.__main__ import run; sys.argv[0] = 'ram-gym'; run()"
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def test_who_installs_the_wheel_trains_evaluates_and_compares(installed: Path, tmp_path: Path) -> None:
    short = ["--task", "digits", "--epochs", "2", "--hidden-size", "16"]
    said = ram_gym(installed, tmp_path, "train", "ram", *short, "--out", "run")
    assert "ram-gym evaluate run" in said
    ram_gym(installed, tmp_path, "train", "ram", *short, "--locator", "random", "--out", "control")
    assert "of 358" in ram_gym(installed, tmp_path, "evaluate", "run")
    compared = ram_gym(installed, tmp_path, "compare", "run", "control", "--json")
    assert '"episodes": 358' in compared
    assert sorted(path.name for path in tmp_path.iterdir()) == ["control", "run"]


def test_the_wheel_holds_the_whole_of_its_packages_and_nothing_else(installed: Path) -> None:
    for name, target in (("ram_gym", "ram_gym"), ("agents", "ram_gym/agents"), ("pretrained", "ram_gym/pretrained")):
        held = {path.relative_to(ROOT / name) for path in (ROOT / name).rglob("*") if path.is_file()}
        held = {path for path in held if "__pycache__" not in path.parts}
        there = {path.relative_to(installed / target) for path in (installed / target).rglob("*") if path.is_file()}
        assert held <= there, f"{target} lacks {sorted(map(str, held - there))[:5]}"
    tops = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert tops == {"ram_gym"}


def test_the_wheel_names_the_command(installed: Path) -> None:
    (points,) = installed.glob("*.dist-info/entry_points.txt")
    assert "ram-gym = ram_gym.agents.__main__:run" in points.read_text()
