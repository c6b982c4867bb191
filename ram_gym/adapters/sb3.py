"""GlimpseVecEnv: the vector environment as Stable-Baselines3 wants it. Needs `pip install 'ram_gym[sb3]'`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from ram_gym.vector_env import LANE_ATTRIBUTES, GlimpseVectorEnv
from ram_gym.wrappers import VectorProgressObservation

try:
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import VecEnv
except ImportError as error:
    raise ImportError(
        "ram_gym.adapters.sb3 needs Stable-Baselines3, which is not installed: pip install 'ram_gym[sb3]'"
    ) from error

Indices = int | Iterable[int] | None


class GlimpseVecEnv(VecEnv):
    """N glimpse environments as one Stable-Baselines3 VecEnv, without a loop over environments.

    Lane i, seeded with s, plays the episodes that a GlimpseEnv seeded with s + i plays: rewards, observations and infos
    equal those of `DummyVecEnv` over `Monitor(GlimpseEnv)`, but that infos of running episodes are empty.

    Observation: Dict of float32 arrays: `glimpse` (N, K * C, P, P), `location` (N, 2), and `progress` (N, 1) if asked.
    Reward: float32 (N,). Done: bool (N,); the next episode has then begun already.
    Info: empty, but for lanes whose episode has just ended: `label`, `prediction`, `is_success`, `index`, `scene_seed`,
    `terminal_observation`, `TimeLimit.truncated` (False) and, as from a Monitor, `episode`: {"r", "l", "t"}.

    Args:
        envs: a GlimpseVectorEnv, with output "numpy" and autoreset mode SAME_STEP, inside VectorMultiDiscreteAction,
            VectorDiscreteAction or VectorBoxAction, since Stable-Baselines3 takes no Dict action; observations may be
            flat (VectorFlattenObservation).
        add_progress: add `progress` to the observation, see `ram_gym.wrappers.ProgressObservation`.
        monitor: put `episode` into infos, so that no VecMonitor is needed; False if one shall do it.

    Raises:
        ValueError: the environment is none of these; from `step`, see the action wrappers.

    Example:
        >>> from ram_gym.wrappers import VectorMultiDiscreteAction
        >>> envs = GlimpseVectorEnv(4, dataset="digits", autoreset_mode="SameStep")
        >>> env = GlimpseVecEnv(VectorMultiDiscreteAction(envs))
        >>> env.seed(0), env.reset()["glimpse"].shape
        ([0, 1, 2, 3], (4, 1, 8, 8))
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any], *, add_progress: bool = False, monitor: bool = True) -> None:
        inner = envs.unwrapped
        if not isinstance(inner, GlimpseVectorEnv):
            raise ValueError(f"envs must be a GlimpseVectorEnv in a wrapper for its actions, got {inner}")
        if inner.output != "numpy" or inner.autoreset_mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                "envs must be made with output='numpy' and autoreset_mode='SameStep', "
                f"got {inner.output!r} and {inner.autoreset_mode.value!r}"
            )
        if isinstance(envs.single_action_space, spaces.Dict):
            raise ValueError(
                "envs must not have a Dict action, which Stable-Baselines3 does not take: wrap it in "
                "ram_gym.wrappers.VectorMultiDiscreteAction, VectorDiscreteAction or VectorBoxAction"
            )
        self.envs = VectorProgressObservation(envs) if add_progress else envs
        self._inner, self._monitors = inner, monitor
        self._start = time.time()
        self._returns = np.zeros(envs.num_envs, np.float64)
        self._lengths = np.zeros(envs.num_envs, np.int64)
        self._actions: Any = None
        super().__init__(envs.num_envs, self.envs.single_observation_space, envs.single_action_space)
        self.metadata = {**self.metadata, "render_fps": inner.metadata["render_fps"]}

    def reset(self) -> dict[str, np.ndarray]:
        """Begins an episode in every lane, with the seeds and options that were set since the last time.

        Raises:
            ValueError: the options of some lanes have keys that those of others have not.
        """
        observation, _ = self.envs.reset(
            seed=None if self._seeds[0] is None else self._seeds,  # type: ignore[arg-type]
            options=self._merge_options(),
        )
        self._returns[:], self._lengths[:] = 0.0, 0
        self.reset_infos = [{} for _ in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return observation

    def step_async(self, actions: np.ndarray) -> None:
        """Takes the actions that `step_wait` plays."""
        self._actions = actions

    def step_wait(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Observations (of the next episode where one ended), rewards, dones and infos; see the class."""
        observation, reward, terminated, _, info = self.envs.step(self._actions)
        self._returns += reward
        self._lengths += 1
        # New ones each time, since wrappers and callbacks may write into them.
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        lanes = np.flatnonzero(terminated)
        if len(lanes):
            self._fill(infos, lanes, info)
            self._returns[lanes], self._lengths[lanes] = 0.0, 0
        return observation, reward.astype(np.float32), terminated, infos

    def close(self) -> None:
        """Closes the vector environment."""
        self.envs.close()

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """A lane's own value where it has one (`canvas`, `label`, `digit_location`), else what the lanes share."""
        lanes = list(self._get_indices(indices))
        if attr_name in ("observation_space", "action_space"):
            return [getattr(self, attr_name)] * len(lanes)
        if attr_name in LANE_ATTRIBUTES:
            values = self._inner.call(attr_name)
            assert values is not None
            return [values[lane] for lane in lanes]
        return [_find(self.envs, attr_name)] * len(lanes)

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Sets an attribute of the vector environment.

        Raises:
            ValueError: not for all lanes, which share it.
        """
        if set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise ValueError(f"indices must be None, since all lanes share {attr_name!r}, got {indices}")
        setattr(self._inner, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Calls a method that a lane has of its own: `reset`, `render`, `get_wrapper_attr`.

        Raises:
            ValueError: another one; call those of all lanes at once on `envs`.
        """
        lanes = list(self._get_indices(indices))
        if method_name == "render" and not method_args and not method_kwargs:
            frames = self.get_images()
            return [frames[lane] for lane in lanes]
        if method_name == "get_wrapper_attr" and len(method_args) == 1:
            return self.get_attr(method_args[0], lanes)
        if method_name == "reset" and not method_args:
            return self._reset_lanes(lanes, **method_kwargs)
        raise ValueError(
            f"method_name must be reset, render or get_wrapper_attr, with GlimpseEnv's arguments, got {method_name!r}; "
            "methods of all lanes at once are those of the attribute envs"
        )

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: Indices = None) -> list[bool]:
        """Whether the vector environment is in such a wrapper; True of Monitor, whose work is done here."""
        found = self._monitors and issubclass(wrapper_class, Monitor)
        env: Any = self.envs
        while not found and env is not self._inner:
            found = isinstance(env, wrapper_class)
            env = env.env
        return [found] * len(list(self._get_indices(indices)))

    def get_images(self) -> Sequence[np.ndarray | None]:
        """One frame a lane, uint8 (height, width, 3); None where `render_mode` is not "rgb_array"."""
        frames = self._inner.render() if self._inner.render_mode is not None else None
        if frames is None:
            warnings.warn("frames need render_mode='rgb_array', given to the vector environment", stacklevel=2)
            return [None] * self.num_envs
        return frames

    # ------------------------------------------------------------------------------------------------- small helpers

    def _fill(self, infos: list[dict[str, Any]], lanes: np.ndarray, info: dict[str, Any]) -> None:
        """Writes what is known of the episodes that ended in these lanes into their infos."""
        values = {key: value[lanes].tolist() for key, value in info["final_info"].items() if not key.startswith("_")}
        seconds = round(time.time() - self._start, 6)
        for number, lane in enumerate(lanes):
            entry = infos[lane]
            entry.update((key, value[number]) for key, value in values.items())
            entry["TimeLimit.truncated"] = False
            entry["terminal_observation"] = _lane(info["final_obs"], lane)
            if self._monitors:
                total, length = round(float(self._returns[lane]), 6), int(self._lengths[lane])
                entry["episode"] = {"r": total, "l": length, "t": seconds}

    def _merge_options(self) -> dict[str, Any] | None:
        """The lanes' options in the form of the vector environment."""
        keys = set(self._options[0])
        if any(set(options) != keys for options in self._options):
            raise ValueError("options must have the same keys for all environments; seed the others instead")
        return {key: np.stack([options[key] for options in self._options]) for key in keys} or None

    def _reset_lanes(
        self, lanes: list[int], seed: int | None = None, options: dict[str, Any] | None = None
    ) -> list[tuple[dict[str, np.ndarray], dict[str, Any]]]:
        """`GlimpseEnv.reset` of some lanes, each with the same arguments."""
        mask = np.isin(np.arange(self.num_envs), lanes)
        seeds: Any = None if seed is None else [seed] * self.num_envs
        observation, _ = self.envs.reset(seed=seeds, options={**(options or {}), "reset_mask": mask})
        self._returns[mask], self._lengths[mask] = 0.0, 0
        return [(_lane(observation, lane), {}) for lane in lanes]


def _lane(observation: Any, lane: int) -> Any:
    """One lane's observation, of a batch in a Dict, of a flat one, or of final observations as objects."""
    if isinstance(observation, dict):
        return {key: value[lane] for key, value in observation.items()}
    return observation[lane]


def _find(env: Any, name: str) -> Any:
    """An attribute of the vector environment or the outermost wrapper that has it."""
    while not hasattr(env, name):
        if env is env.unwrapped:
            raise AttributeError(f"the environment has no attribute {name!r}")
        env = env.env
    return getattr(env, name)
