"""The table of agents: every agent's folder offers what `Agent` asks for, and nothing is imported too early."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agents.registry import AGENTS, FILES, Agent, get_agent, load_run, preset, read_config
from ram_gym import TASKS


def parameters(function: Any) -> list[tuple[str, Any, bool]]:
    """Name, kind and whether there is a default, of all parameters but self."""
    found = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, p.default is not p.empty) for p in found if p.name != "self"]


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_offers_what_the_protocol_asks_for(name: str) -> None:
    agent = get_agent(name)
    assert set(FILES) == {*Agent.__annotations__, "preset", "train", "load"}
    for method in ("train", "load"):
        wanted, offered = parameters(getattr(Agent, method)), parameters(getattr(agent, method))
        assert offered[: len(wanted)] == wanted, method
        assert all(has_default for _, _, has_default in offered[len(wanted) :]), method
    assert [p[0] for p in parameters(agent.preset)] == ["task", "agent"]
    assert agent.PRESETS.keys() >= {name}
    for task in TASKS:
        config = preset(name, task)
        assert type(config) is agent.CONFIG
        assert (config.agent, config.task) == (name, task)
        assert type(config).from_dict(config.to_dict()) == config


def test_agents_of_other_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^agents are ram, .*, got 'rain'$"):
        get_agent("rain")
    with pytest.raises(ValueError, match=r"^Stable-Baselines3's ppo is called sb3-ppo$"):
        get_agent("ppo")


def test_a_run_is_loaded_by_its_name_or_path() -> None:
    by_name = load_run("pretrained:mnist-28")
    by_path = load_run(by_name.path)
    assert by_name.config == by_path.config == read_config(str(by_name.path)).moved("cpu", None)
    assert by_name.epoch == by_path.epoch
    weights = by_path.model.state_dict()
    assert all(weights[name].equal(weight) for name, weight in by_name.model.state_dict().items())
    assert not by_name.model.training


def test_the_table_and_the_command_line_import_no_stable_baselines() -> None:
    code = "import sys, agents.cli; print([name for name in sys.modules if name.startswith('stable_baselines3')])"
    root = Path(__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
