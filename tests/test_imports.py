"""The import rules, read from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

import pytest

from agents.registry import AGENTS

ROOT = Path(__file__).parents[1]

# Each module may import what stands in a row before its own, and its neighbours where noted.
ORDER = [
    {"coordinates", "sources", "files", "kernels"},
    {"arguments", "downloads", "image_files"},
    {"config"},
    {"arrays"},
    {"image_folders", "npz_files"},
    {"pyramids", "scenes", "datasets", "drawing", "statistics"},
    {"retina", "rendering", "rules"},
    {"env"},
    {"vector_env"},
    {"wrappers", "evaluation"},
    {"adapters"},
    {"tables"},
    {"plots"},
    {"report"},
    {"tasks"},
    {"registration"},
    {"__init__"},
]
PUBLIC_MODULES = {"adapters", "coordinates", "drawing", "files", "wrappers"}
LAYER = {name: layer for layer, names in enumerate(ORDER) for name in names}


def imported(path: Path) -> set[str]:
    """Absolute names of modules, and of things in them, that a file imports anywhere in it.

    Within agents/ imports of one another are relative, since the folder has another name in a wheel.
    """
    names: set[str] = set()
    in_agents = path.is_relative_to(ROOT / "agents")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            own = in_agents and (node.level > 0 or str(node.module).partition(".")[0] == "agents")
            assert (node.level > 0) == own, f"{path}: imports are relative within agents/ and absolute elsewhere"
            package = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join([*package, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def layer_of(path: Path) -> str:
    """The module, or the package directly in ram_gym, that a file belongs to."""
    return path.relative_to(ROOT / "ram_gym").with_suffix("").parts[0]


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", files("ram_gym"), ids=lambda path: path.stem)
def test_ram_gym_imports_only_what_stands_left_of_it(path: Path) -> None:
    for name in imported(path):
        package, _, rest = name.partition(".")
        assert package not in {"agents", "examples", "tests", "benchmarks"}, f"{path} imports {name}"
        module = rest.partition(".")[0]
        if package == "ram_gym" and module in LAYER:
            assert LAYER[module] < LAYER[layer_of(path)], f"{path} imports {name}"


@pytest.mark.parametrize("path", files("agents"), ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_agents_use_public_names_and_do_not_import_each_other(path: Path) -> None:
    import ram_gym

    for name in imported(path):
        package, _, rest = name.partition(".")
        assert package not in {"examples", "tests", "benchmarks"}, f"{path} imports {name}"
        if package == "ram_gym" and rest and rest.partition(".")[0] not in PUBLIC_MODULES:
            assert rest in ram_gym.__all__, f"{path} imports {name}, which is not public"
        folders = {agent.folder for agent in AGENTS.values()}
        for other in folders - {path.parent.name}:  # agents share training/ and scripted.py, all others ask registry.py
            assert not name.startswith(f"agents.{other}."), f"{path} imports {name}"


@pytest.mark.parametrize("path", files("benchmarks"), ids=lambda path: path.stem)
def test_benchmarks_know_the_inside_of_ram_gym_in_one_module_alone(path: Path) -> None:
    import ram_gym

    for name in imported(path):
        package, _, rest = name.partition(".")
        assert package not in {"examples", "tests"}, f"{path} imports {name}"
        if package == "ram_gym" and rest and path.stem != "stepping":
            assert rest in ram_gym.__all__, f"{path} imports {name}, which is not public"


def test_every_module_has_its_layer() -> None:
    assert {layer_of(path) for path in files("ram_gym")} == set(LAYER)


def test_public_names_exist() -> None:
    import ram_gym

    for name in ram_gym.__all__:
        assert getattr(ram_gym, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ram_gym.nothing


@pytest.mark.parametrize("path", files("ram_gym") + files("agents"), ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_pydantic_is_imported_where_it_checks_and_nowhere_else(path: Path) -> None:
    """It takes a tenth of a second: the environment does without it, and the agents' modules load it at first use."""
    module = ast.parse(path.read_text())
    uses_it, is_checker = imports_pydantic(ast.walk(module)), path.is_relative_to(ROOT / "agents/training")
    assert not imports_pydantic(module.body)
    assert is_checker or not uses_it


def imports_pydantic(nodes: Iterable[ast.AST]) -> bool:
    names = [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    return any(name.startswith("pydantic") for name in names)
