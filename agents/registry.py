"""The agents: one table of names, what each agent's folder offers, and loading any agent's run.

To add an agent: make its folder with the rooms that `ROOMS` names, and add a line to `AGENTS`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from torch import nn

from ram_gym import GlimpseConfig, GlimpseVectorEnv, Policy

from .training.config import TrainConfig
from .training.environment import find_data_root
from .training.fingerprint import Data, is_other_data
from .training.pretrained import find_run
from .training.ranks import ALONE, Ranks
from .training.run_folder import MIGRATE, RunError, RunFolder

if TYPE_CHECKING:
    from .training.loop import OnProgress, TrainResult


class Listed(NamedTuple):
    """An agent's line in the table."""

    folder: str
    """The folder in agents/; several agents may share one."""
    title: str
    """What `train AGENT` trains."""


AGENTS = {
    "ram": Listed("ram", "a Recurrent Attention Model (Mnih et al. 2014) by REINFORCE"),
    "sb3-ppo-lstm": Listed("sb3", "Stable-Baselines3's RecurrentPPO by the reward alone"),
    "sb3-ppo": Listed("sb3", "Stable-Baselines3's PPO, which has no memory, by the reward alone"),
    "cnn": Listed("full_image", "a convolutional network that sees the whole canvas"),
    "mlp": Listed("full_image", "a fully connected network that sees the whole canvas"),
}

RENAMED = {"ppo": "sb3-ppo", "ppo-lstm": "sb3-ppo-lstm"}
"""What agents are called that had another name in older versions."""


class Agent(Protocol):
    """What an agent's folder offers; `ROOMS` says in which file.

    An agent may take more: modules of the user's own, for instance, with defaults and by name.
    """

    CONFIG: type[TrainConfig]
    """Class of its configurations."""
    PRESETS: Mapping[str, Mapping[str, Any]]
    """What a task changes in it, by agent and task."""

    def preset(self, task: str, agent: str) -> TrainConfig:
        """The configuration that `python -m agents train AGENT --task TASK` starts from.

        A task without a preset has that of the nearest one, see `agents.training.config.nearest_task`.

        Raises:
            ValueError: there is no task of that name.
        """

    def train(
        self,
        config: Any,
        folder: RunFolder | None = None,
        *,
        resume: bool = False,
        init: RunFolder | None = None,
        on_progress: OnProgress | None = None,
        ranks: Ranks = ALONE,
    ) -> TrainResult:
        """Trains; arguments and errors are those of `agents.training.loop.run_training`."""

    def load(self, folder: RunFolder, config: Any) -> TrainedRun:
        """The best network of a run with this configuration, without its data; errors are those of `load_run`."""


ROOMS = {"CONFIG": "config", "PRESETS": "config", "preset": "config", "train": "training", "load": "policy"}
"""The file of an agent's folder that each part of `Agent` is in. It is imported when the part is asked for."""


class _Folder:
    # An agent's folder as an `Agent`. A room is imported when it is needed, since Stable-Baselines3 takes seconds.
    def __init__(self, folder: str) -> None:
        self._folder = folder

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(f".{self._folder}.{ROOMS[name]}", __package__), name)


def get_agent(name: str) -> Agent:
    """An agent by its name.

    Raises:
        ValueError: there is no agent of that name.
    """
    if name in RENAMED:
        raise ValueError(f"Stable-Baselines3's {name} is called {RENAMED[name]}")
    if name not in AGENTS:
        raise ValueError(f"agents are {', '.join(AGENTS)}, got {name!r}")
    return cast(Agent, _Folder(AGENTS[name].folder))


class MakePolicy(Protocol):
    """Makes a run's policy for an environment."""

    def __call__(self, env: GlimpseVectorEnv, locator: str | None = None, name: str = ...) -> Policy:
        """The policy; a scripted locator looks instead of the run's own, and reports call it by the name."""


class TrainedRun(NamedTuple):
    """What a run folder holds, ready to play."""

    path: Path
    config: Any
    """The `TrainConfig` of its agent."""
    data: Data
    """What it learned from."""
    epoch: int
    """The epoch that its best network is of."""
    model: nn.Module
    """The best network, in evaluation mode."""
    make_policy: MakePolicy
    looks: bool = True
    """Whether it answers from glimpses; one that sees the whole canvas can lend its network to no locator."""

    def is_other_data(self, env_config: GlimpseConfig, allowed: bool) -> bool:
        """Whether an environment is another one than it learned from, or its split shows other images.

        Raises:
            ValueError: it is, and that is not allowed; or it has another number of classes or channels.
        """
        instead = None if allowed else "--other-data plays it all the same"
        return is_other_data(self.data, env_config, (env_config.split,), self.path, instead)


def preset(agent: str, task: str) -> TrainConfig:
    """The configuration that `python -m agents train AGENT --task TASK` starts from; see `Agent.preset`."""
    return get_agent(agent).preset(task, agent)


def read_config(run: RunFolder | str | os.PathLike[str]) -> TrainConfig:
    """The configuration of a run, without its weights.

    Args:
        run: the run, its folder's path, or pretrained:NAME.

    Raises:
        RunError: there is no such run, it is of no agent of this version, or its config.json is damaged.
    """
    folder = run if isinstance(run, RunFolder) else find_run(run)
    agent = folder.read_agent()
    if agent not in AGENTS:
        hint = f": {MIGRATE} {folder.path} brings an older run up to date" if agent in RENAMED else ""
        raise RunError(f"{folder.path} is a run of {agent!r}, which is no agent of this version{hint}")
    config = folder.read_as(get_agent(agent).CONFIG, agent)
    if config.agent != agent:
        raise RunError(f"{folder.path}/config.json is damaged: it is of {agent!r} and of {config.agent!r}")
    return config


def load_run(
    run: RunFolder | str | os.PathLike[str], device: str | None = None, data_root: str | None = None, **own: Any
) -> TrainedRun:
    """The best network of a run, and the run's configuration with another device and data folder where given.

    Needs no data.

    Args:
        run: the run, its folder's path, or pretrained:NAME.
        device: PyTorch device; None takes the run's.
        data_root: folder with the datasets; None takes the run's, if they are there.
        own: the modules that the run was trained with where its configuration says "custom", under the names that the
            agent's `train` has for them.

    Raises:
        RunError: there is no such run, no best checkpoint yet, or it is damaged.
        ImportError: it is a Stable-Baselines3 run, and that is not installed.
        ValueError: a module of the run's own is not given.
    """
    folder = run if isinstance(run, RunFolder) else find_run(run)
    config = read_config(folder)
    config = config.moved(device, find_data_root(config.env_config, data_root))
    load: Any = get_agent(config.agent).load
    return load(folder, config, **own)
