"""The table of agents, the interface of an agent, and loading a run of any agent.

To add an agent: create its folder with the files that `FILES` names, and add a line to `AGENTS`.
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
    from .training.learner import OnProgress, TrainResult


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
"""Names of agents in older versions, with their current names."""


class Agent(Protocol):
    """The interface of an agent. `FILES` names the file in its folder that defines each part.

    `train` and `load` may take further keyword arguments with defaults, such as the user's own modules.
    """

    CONFIG: type[TrainConfig]
    """Class of its training configs."""
    PRESETS: Mapping[str, Mapping[str, Any]]
    """Presets: agent -> task -> fields of the training config and their values."""

    def preset(self, task: str, agent: str) -> TrainConfig:
        """The training config with the defaults of `python -m agents train AGENT --task TASK`.

        A task without a preset takes that of the nearest task, see `agents.training.config.nearest_task`.

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
        """The best network of a run with this training config. Needs no data. Errors are those of `load_run`."""


FILES = {"CONFIG": "config", "PRESETS": "config", "preset": "config", "train": "training", "load": "policy"}
"""The file in an agent's folder that defines each part of `Agent`. It is imported at the first use of the part."""


class _Folder:
    # An agent's folder as an `Agent`. It imports a file at its first use, since Stable-Baselines3 takes seconds.
    def __init__(self, folder: str) -> None:
        self._folder = folder

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(f".{self._folder}.{FILES[name]}", __package__), name)


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
        """The policy.

        Args:
            env: the environment to play.
            locator: name of a scripted locator that chooses the locations instead of the run's own; None: its own.
            name: name in reports.
        """


class TrainedRun(NamedTuple):
    """A run's best network, ready to play."""

    path: Path
    config: Any
    """The `TrainConfig` of its agent."""
    data: Data
    """Description of the environment and data that it learned from."""
    epoch: int
    """Epoch of the best network."""
    model: nn.Module
    """The best network, in evaluation mode."""
    make_policy: MakePolicy
    looks: bool = True
    """Whether it takes glimpses; False: it sees the whole canvas, and no locator can be used with it."""

    def is_other_data(self, env_config: GlimpseConfig, allowed: bool) -> bool:
        """Whether an environment or the images of its split differ from those that the run learned from.

        Raises:
            ValueError: they differ and `allowed` is False; or the numbers of classes or channels differ.
        """
        instead = None if allowed else "--other-data plays it all the same"
        return is_other_data(self.data, env_config, (env_config.split,), self.path, instead)


def preset(agent: str, task: str) -> TrainConfig:
    """The training config with the defaults of `python -m agents train AGENT --task TASK`; see `Agent.preset`."""
    return get_agent(agent).preset(task, agent)


def read_config(run: RunFolder | str | os.PathLike[str]) -> TrainConfig:
    """The training config of a run.

    Args:
        run: the run, its folder's path, or pretrained:NAME.

    Raises:
        RunError: there is no such run, this version does not have its agent, or its config.json is damaged.
    """
    folder = run if isinstance(run, RunFolder) else find_run(run)
    agent = folder.read_agent()
    if agent not in AGENTS:
        hint = f": {MIGRATE} {folder.path} converts a run of an older version" if agent in RENAMED else ""
        raise RunError(f"{folder.path} is a run of {agent!r}, which is no agent of this version{hint}")
    config = folder.read_as(get_agent(agent).CONFIG, agent)
    if config.agent != agent:
        raise RunError(f"{folder.path}/config.json is damaged: it is of {agent!r} and of {config.agent!r}")
    return config


def load_run(
    run: RunFolder | str | os.PathLike[str], device: str | None = None, data_root: str | None = None, **own: Any
) -> TrainedRun:
    """The best network of a run with its training config. Needs no data.

    Args:
        run: the run, its folder's path, or pretrained:NAME.
        device: PyTorch device; None takes the run's.
        data_root: folder with the datasets; None takes the run's if it has the dataset, else the default folder.
        own: the user's own modules, for a run whose training config says "custom", under their names in the agent's
            `train`.

    Raises:
        RunError: there is no such run, no best checkpoint yet, or it is damaged.
        ImportError: it is a Stable-Baselines3 run, and Stable-Baselines3 is not installed.
        ValueError: one of the user's own modules is missing.
    """
    folder = run if isinstance(run, RunFolder) else find_run(run)
    config = read_config(folder)
    config = config.moved(device, find_data_root(config.env_config, data_root))
    load: Any = get_agent(config.agent).load
    return load(folder, config, **own)
