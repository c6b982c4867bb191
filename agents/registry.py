"""Loading a run folder, whichever agent it is of."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from ram_gym import GlimpseConfig, GlimpseVectorEnv, Policy

from .training.config import TrainConfig
from .training.fingerprint import Data, is_other_data
from .training.run_folder import MIGRATE, RunError, RunFolder

RENAMED = {"ppo": "sb3-ppo", "ppo-lstm": "sb3-ppo-lstm"}
"""What agents are called whose name was another in older versions."""


class TrainedRun(NamedTuple):
    """What a run folder holds, ready to play."""

    path: Path
    config: TrainConfig
    data: Data
    """What it learned from."""
    epoch: int
    """The epoch that its best network is of."""
    make_policy: Callable[[GlimpseVectorEnv, str | None, str], Policy]
    """(environment, scripted locator or None for the run's own, name for reports) -> policy."""
    looks: bool = True
    """Whether it answers from glimpses; one that sees the whole canvas can lend its network to no locator."""

    def is_other_data(self, env_config: GlimpseConfig, allowed: bool) -> bool:
        """Whether an environment is another one than it learned from, or its split shows other images.

        Raises:
            ValueError: it is, and that is not allowed; or it has another number of classes or channels.
        """
        instead = None if allowed else "--other-data plays it all the same"
        return is_other_data(self.data, env_config, (env_config.split,), self.path, instead)


def config_class(agent: str) -> type[TrainConfig] | None:
    """The class of an agent's configuration; None where there is no such agent."""
    if agent in ("sb3-ppo", "sb3-ppo-lstm"):
        from .sb3.config import Sb3Config

        return Sb3Config
    if agent in ("cnn", "mlp"):
        from .full_image.config import FullImageConfig

        return FullImageConfig
    if agent == "ram":
        from .ram.config import RamConfig

        return RamConfig
    return None


def read_config(folder: RunFolder) -> TrainConfig:
    """The configuration of a run, without its weights.

    Raises:
        RunError: there is no such run, it is of no agent of this version, or its config.json is damaged.
    """
    agent = folder.read_agent()
    kind = config_class(agent)
    if kind is None:
        raise _unknown(folder, agent)
    return folder.read_as(kind, agent)


def preset(agent: str, task: str) -> TrainConfig:
    """What `python -m agents train AGENT --task TASK` starts from.

    Raises:
        ValueError: there is no such agent, or no such task.
    """
    if agent in ("sb3-ppo", "sb3-ppo-lstm"):
        from .sb3.config import preset as preset_of

        return preset_of(cast(Any, agent), task)
    if agent in ("cnn", "mlp"):
        from .full_image.config import preset as preset_of_network

        return preset_of_network(cast(Any, agent), task)
    if agent != "ram":
        raise ValueError(f"there is no agent {agent!r}")
    from .ram.config import preset as preset_of_ram

    return preset_of_ram(task)


def _unknown(folder: RunFolder, agent: str) -> RunError:
    hint = f": {MIGRATE} {folder.path} brings an older run up to date" if agent in RENAMED else ""
    return RunError(f"{folder.path} is a run of {agent!r}, which is no agent of this version{hint}")


def load_run(folder: RunFolder, device: str | None = None, data_root: str | None = None) -> TrainedRun:
    """The best network of a run, and the run's configuration with another device and data folder where given.

    Needs no data.

    Raises:
        RunError: there is no such run, no best checkpoint yet, or it is damaged.
        ImportError: it is a Stable-Baselines3 run, and that is not installed.
    """
    about = folder.read_about()
    agent, data = about["agent"], about["data"]
    if agent in ("sb3-ppo", "sb3-ppo-lstm"):
        from .sb3 import policy as playing

        policy, sb3_config, epoch = playing.load_policy(folder, device, data_root)
        return TrainedRun(folder.path, sb3_config, data, epoch, partial(playing.make_policy, policy, sb3_config))
    if agent in ("cnn", "mlp"):
        from .full_image import policy as full_image

        network, full_config, epoch = full_image.load_model(folder, device, data_root)

        def make_full_image_policy(env: GlimpseVectorEnv, locator: str | None, name: str) -> Policy:
            assert locator is None, "it does not look"
            return full_image.FullImagePolicy(network, env, name)

        return TrainedRun(folder.path, full_config, data, epoch, make_full_image_policy, looks=False)
    if agent != "ram":
        raise _unknown(folder, agent)
    from .ram import rollout

    model, config, epoch = rollout.load_model(folder, device, data_root)

    def make_policy(env: GlimpseVectorEnv, locator: str | None, name: str) -> Policy:
        return rollout.make_policy(model, env, locator or config.locator, config.seed, name)

    return TrainedRun(folder.path, config, data, epoch, make_policy)
