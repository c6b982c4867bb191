"""Other forms of actions, observations and rewards.

Of each action form there is one class for the single and one for the vector environment: a decoding of its own actions
into (location, label), the same function for both. `ProgressObservation` tells policies without a memory how far the
episode is. `gymnasium.wrappers.FlattenObservation` and `VectorFlattenObservation` make observations flat, as the
former lays them out: the glimpse's K * C * P * P values (patch by patch, row by row), then x and y, then `progress` if
there is one. `EveryAnswerReward` pays for right labels before the last step too.

Vector wrappers pass attributes that they lack on to their environment: `config`, `autoreset_mode`, `call`, ...
Longer than other files here: each form has its single and its vector class side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from array_api_compat import array_namespace, device, is_torch_array
from gymnasium import spaces
from gymnasium.vector import VectorActionWrapper, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from ram_gym.arguments import as_integer, numbers
from ram_gym.coordinates import Array

GRID_SIZE = 7
"""Default number of grid cells along each axis of the canvas."""

PROGRESS = spaces.Box(0.0, 1.0, (1,), np.float32)
"""The space of `progress`: glimpses taken so far as a share of all; 1 where the next action is the answer."""


class _Coding(NamedTuple):
    """An action form for L labels."""

    space: spaces.Space[Any]
    """Of one environment."""
    decode: Callable[[Array], dict[str, Array]]
    """Actions (N, ...) -> location float32 (N, 2) and label int64 (N,)."""


def _box(num_classes: int) -> _Coding:
    return _Coding(spaces.Box(-1.0, 1.0, (2 + num_classes,), np.float32), _decode_box)


def _decode_box(actions: Array) -> dict[str, Array]:
    xp = array_namespace(actions)
    location, is_finite = actions[:, :2], xp.isfinite(actions)
    if not _is_at_hand(actions):
        location = xp.where(xp.all(is_finite, axis=1)[:, None], location, xp.nan)
    elif not xp.all(is_finite):
        raise ValueError("action must be finite, got NaN or infinity")
    return {"location": location, "label": xp.argmax(actions[:, 2:], axis=1)}


def _multi_discrete(num_classes: int, grid_size: int) -> _Coding:
    space = spaces.MultiDiscrete([grid_size, grid_size, num_classes])
    return _Coding(space, partial(_decode_multi_discrete, grid_size))


def _decode_multi_discrete(grid_size: int, actions: Array) -> dict[str, Array]:
    return {"location": _cell_centres(actions[:, 0], actions[:, 1], grid_size), "label": actions[:, 2]}


def _discrete(num_classes: int, grid_size: int) -> _Coding:
    return _Coding(spaces.Discrete(grid_size**2 * num_classes), partial(_decode_discrete, num_classes, grid_size))


def _decode_discrete(num_classes: int, grid_size: int, actions: Array) -> dict[str, Array]:
    cells, labels = actions // num_classes, actions % num_classes
    return {"location": _cell_centres(cells % grid_size, cells // grid_size, grid_size), "label": labels}


def _cell_centres(columns: Array, rows: Array, grid_size: int) -> Array:
    """Locations of the cells' centres, the G x G cells tiling the canvas. int64 (N,), (N,) -> float32 (N, 2).

    NaN where there is no such cell.
    """
    xp = array_namespace(columns)
    indices = xp.stack((columns, rows), axis=-1)
    cells = xp.astype(indices, xp.float32)
    centres = (cells * 2.0 + 1.0) / xp.full((1,), grid_size, dtype=xp.float32, device=device(cells)) - 1.0
    if _is_at_hand(indices):  # and so checked
        return centres
    return xp.where(xp.all((indices >= 0) & (indices < grid_size), axis=1)[:, None], centres, xp.nan)


def _checked_grid_size(grid_size: Any) -> int:
    if isinstance(grid_size, bool) or not isinstance(grid_size, int | np.integer) or grid_size < 1:
        raise ValueError(f"grid_size must be a positive int, got {grid_size!r}")
    return int(grid_size)


class _SingleWrapper(gym.ActionWrapper[Any, Any, Any], gym.utils.RecordConstructorArgs):
    def __init__(self, env: gym.Env[Any, Any], coding: Callable[..., _Coding], **arguments: Any) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, **arguments)
        gym.ActionWrapper.__init__(self, env)
        self.coding = coding(_num_classes(env.action_space), **arguments)
        self.action_space = self.coding.space

    def action(self, action: Any) -> dict[str, Any]:
        """The environment's own action."""
        array = _checked(numbers("action", action, "numbers"), self.coding.space.shape, self.coding.space)
        decoded = self.coding.decode(array[None])
        return {"location": decoded["location"][0], "label": int(decoded["label"][0])}


class _Forwarding(VectorWrapper):
    """A vector wrapper with its environment's public attributes."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "env":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.env, name)


def _map_final_obs(info: dict[str, Any], change: Callable[[dict[str, Any], slice], Any]) -> dict[str, Any]:
    """The info with changed final observations: `change` gets a batch of some lanes' and which lanes these are."""
    if "final_obs" not in info:
        return info
    final = info["final_obs"]
    if isinstance(final, np.ndarray) and final.dtype == object:
        final = final.copy()
        for lane, observation in enumerate(final):
            if observation is not None:
                changed = change({key: v[None] for key, v in observation.items()}, slice(lane, lane + 1))
                is_dict = isinstance(changed, dict)
                final[lane] = {key: v[0] for key, v in changed.items()} if is_dict else changed[0]
    else:
        final = change(final, slice(None))
    return {**info, "final_obs": final}


class _VectorWrapper(_Forwarding, VectorActionWrapper):
    def __init__(self, env: VectorEnv[Any, Any, Any], coding: Callable[..., _Coding], **arguments: Any) -> None:
        super().__init__(env)
        self.coding = coding(_num_classes(env.single_action_space), **arguments)
        self.single_action_space = self.coding.space
        self.action_space = batch_space(self.coding.space, env.num_envs)

    def actions(self, actions: Any) -> dict[str, Any]:
        """The environment's own actions."""
        array = numbers("action", actions, "numbers", actions.device if is_torch_array(actions) else None)
        expected = (self.num_envs, *(self.coding.space.shape or ()))
        return self.coding.decode(_checked(array, expected, self.coding.space))


def _num_classes(space: spaces.Space[Any]) -> int:
    if isinstance(space, spaces.Dict) and set(space.spaces) == {"location", "label"}:
        label, is_ours = space["label"], space["location"] == spaces.Box(-1.0, 1.0, (2,), np.float32)
        if is_ours and isinstance(label, spaces.Discrete) and label.start == 0:
            return int(label.n)
    raise ValueError(f"env must have the action space of GlimpseEnv, a Dict of location and label, got {space}")


def _is_at_hand(array: Array) -> bool:
    """Whether values can be checked without waiting for a device. Elsewhere a bad action gets a location of NaN, which
    the environment reports later.
    """
    return not is_torch_array(array) or array.device.type == "cpu"


def _checked(array: Array, shape: tuple[int, ...] | None, space: spaces.Space[Any]) -> Array:
    """The array; ValueError if its shape, kind or range is not the space's."""
    if tuple(array.shape) != shape:
        raise ValueError(f"action must have shape {shape}, got {tuple(array.shape)}")
    xp = array_namespace(array)
    if isinstance(space, spaces.Box):
        if not xp.isdtype(array.dtype, ("real floating", "integral")):
            raise ValueError(f"action must be real numbers, got dtype {array.dtype}")
        with np.errstate(over="ignore"):  # too large for float32 is infinite, which decoding refuses
            return xp.astype(array, xp.float32)
    if not xp.isdtype(array.dtype, "integral"):
        raise ValueError(f"action must be integers, got dtype {array.dtype}")
    array = xp.astype(array, xp.int64)
    bounds = space.nvec if isinstance(space, spaces.MultiDiscrete) else np.asarray(space.n)  # type: ignore[attr-defined]
    if _is_at_hand(array) and xp.any((array < 0) | (array >= xp.asarray(bounds, device=device(array)))):
        raise ValueError(f"action must lie in {space}, got {array.tolist()}")
    return array


class BoxAction(_SingleWrapper):
    """Actions as one vector: (x, y, one score per label); the label is the highest score.

    Action: float32 (2 + L,) in [-1, 1]; x and y outside are clipped.

    Raises:
        ValueError: NaN, infinity or a wrong shape; the environment's state is then unchanged.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env, _box)


class MultiDiscreteAction(_SingleWrapper):
    """Actions as (column, row, label): the centre of a cell of a G x G grid over the canvas, and the answer.

    Action: MultiDiscrete([G, G, L]).

    Args:
        env: an environment with GlimpseEnv's action space.
        grid_size: number G of cells along each axis.

    Raises:
        ValueError: a wrong shape or kind, or a number out of range; the environment's state is then unchanged.
    """

    def __init__(self, env: gym.Env[Any, Any], grid_size: int = GRID_SIZE) -> None:
        super().__init__(env, _multi_discrete, grid_size=_checked_grid_size(grid_size))


class DiscreteAction(_SingleWrapper):
    """Actions as one number, (row * G + column) * L + label: `MultiDiscreteAction` spread out.

    Action: Discrete(G * G * L).

    Args:
        env: an environment with GlimpseEnv's action space.
        grid_size: number G of cells along each axis.

    Raises:
        ValueError: no integer, or out of range; the environment's state is then unchanged.
    """

    def __init__(self, env: gym.Env[Any, Any], grid_size: int = GRID_SIZE) -> None:
        super().__init__(env, _discrete, grid_size=_checked_grid_size(grid_size))


class VectorBoxAction(_VectorWrapper):
    """`BoxAction` for the vector environment: float32 (N, 2 + L), arrays or tensors."""

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env, _box)


class VectorMultiDiscreteAction(_VectorWrapper):
    """`MultiDiscreteAction` for the vector environment: integers (N, 3), arrays or tensors."""

    def __init__(self, env: VectorEnv[Any, Any, Any], grid_size: int = GRID_SIZE) -> None:
        super().__init__(env, _multi_discrete, grid_size=_checked_grid_size(grid_size))


class VectorDiscreteAction(_VectorWrapper):
    """`DiscreteAction` for the vector environment: integers (N,), arrays or tensors."""

    def __init__(self, env: VectorEnv[Any, Any, Any], grid_size: int = GRID_SIZE) -> None:
        super().__init__(env, _discrete, grid_size=_checked_grid_size(grid_size))


class ProgressObservation(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Adds `progress` to the observation: glimpses taken so far as a share of all, so that 1 asks for the answer.

    Observation: the environment's own, and `progress`, float32 (1,) in (0, 1].

    Args:
        env: a GlimpseEnv, in any wrapper that keeps its Dict observation.

    Raises:
        ValueError: the environment has no Dict observation.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        if not isinstance(env.observation_space, spaces.Dict):
            raise ValueError(f"env must have a Dict observation, got {env.observation_space}")
        self.observation_space = spaces.Dict({**env.observation_space.spaces, "progress": PROGRESS})
        self._num_steps, self._is_over = np.zeros(1, np.int64), False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begins an episode; see the environment."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._num_steps[0], self._is_over = 0, False
        return self._observe(observation), info

    def step(self, action: Any) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        """Plays a step; see the environment."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        # A step after the last one is the next episode's first observation, where a wrapper below begins one.
        self._num_steps[0] = 0 if self._is_over else self._num_steps[0] + 1
        self._is_over = bool(terminated or truncated)
        return self._observe(observation), reward, terminated, truncated, info

    def _observe(self, observation: dict[str, Any]) -> dict[str, Any]:
        return {**observation, "progress": _progress(self._num_steps, self.get_wrapper_attr("config").num_glimpses)}


class VectorProgressObservation(_Forwarding):
    """`ProgressObservation` for the vector environment: `progress` float32 (N, 1), arrays or tensors.

    It is in `final_obs` too, where it is 1 unless the episode was truncated.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        if not isinstance(env.single_observation_space, spaces.Dict) or not hasattr(env.unwrapped, "num_steps"):
            raise ValueError(f"env must be a GlimpseVectorEnv with its Dict observation, got {env}")
        self.single_observation_space = spaces.Dict({**env.single_observation_space.spaces, "progress": PROGRESS})
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)

    def reset(
        self, *, seed: int | Any | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begins episodes; see the environment."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self.observations(observation), info

    def step(self, actions: Any) -> tuple[dict[str, Any], Any, Any, Any, dict[str, Any]]:
        """Plays a step in every lane; see the environment."""
        steps_at_end = self.env.unwrapped.num_steps + 1  # type: ignore[attr-defined]
        observation, reward, terminated, truncated, info = self.env.step(actions)
        info = _map_final_obs(info, lambda final, lanes: self._with_progress(final, steps_at_end[lanes]))
        return self.observations(observation), reward, terminated, truncated, info

    def observations(self, observations: dict[str, Any]) -> dict[str, Any]:
        """The environment's observations of now, with `progress`."""
        return self._with_progress(observations, self.env.unwrapped.num_steps)  # type: ignore[attr-defined]

    def _with_progress(self, observation: dict[str, Any], num_steps: np.ndarray) -> dict[str, Any]:
        num_glimpses = self.env.unwrapped.config.num_glimpses  # type: ignore[attr-defined]
        like, progress = observation["location"], _progress(num_steps[:, None], num_glimpses)
        return {**observation, "progress": array_namespace(like).asarray(progress, device=device(like))}


def _progress(num_steps: np.ndarray, num_glimpses: int) -> np.ndarray:
    """Glimpses taken as a share of all, float32 of the shape of `num_steps`: how many steps each episode has had."""
    return np.minimum((num_steps + 1) / num_glimpses, 1.0).astype(np.float32)


class VectorFlattenObservation(_Forwarding):
    """Observations as one vector a lane: `gymnasium.wrappers.FlattenObservation` for the vector environment.

    Observation: float32 (N, D), arrays or tensors: the glimpse's K * C * P * P values (patch by patch, row by row),
    then x and y, then `progress` if there is one. `final_obs` is flat too. All autoreset modes.

    Args:
        env: a GlimpseVectorEnv, in any wrappers that keep a Dict observation.

    Raises:
        ValueError: the environment has no Dict observation.

    Example:
        >>> from ram_gym import GlimpseVectorEnv
        >>> envs = VectorFlattenObservation(GlimpseVectorEnv(3, dataset="digits"))
        >>> envs.reset(seed=0)[0].shape
        (3, 66)
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        space = env.single_observation_space
        if not isinstance(space, spaces.Dict):
            raise ValueError(f"env must have a Dict observation, got {space}")
        self._keys = list(space.spaces)
        self.single_observation_space = spaces.flatten_space(space)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)

    def reset(
        self, *, seed: int | Any | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begins episodes; see the environment."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self.observations(observation), info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Plays a step in every lane; see the environment."""
        observation, reward, terminated, truncated, info = self.env.step(actions)
        info = _map_final_obs(info, lambda final, _: self.observations(final))
        return self.observations(observation), reward, terminated, truncated, info

    def observations(self, observations: dict[str, Any]) -> Any:
        """The environment's observations as one vector a lane."""
        values = [observations[key] for key in self._keys]
        return array_namespace(values[0]).concat([value.reshape(len(value), -1) for value in values], axis=1)


def _check_weight(weight: Any) -> float:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not np.isfinite(weight):
        raise ValueError(f"weight must be a finite number, got {weight!r}")
    return float(weight)


class EveryAnswerReward(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Reward shaping: `weight` more for each step before the last whose label is right. The last step pays as before.

    An agent that learns from rewards alone so gets T answers an episode in place of one.

    Args:
        env: an environment with GlimpseEnv's action space: put other action forms around this wrapper.
        weight: what an earlier right label earns.

    Raises:
        ValueError: the environment has another action space, or the weight is no finite number.
    """

    def __init__(self, env: gym.Env[Any, Any], weight: float) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, weight=weight)
        gym.Wrapper.__init__(self, env)
        _num_classes(env.action_space)
        self.weight = _check_weight(weight)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Plays a step; see the environment."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if not terminated and as_integer(action["label"]) == self.get_wrapper_attr("label"):
            reward = float(reward) + self.weight
        return observation, reward, terminated, truncated, info


class VectorEveryAnswerReward(_Forwarding):
    """`EveryAnswerReward` for the vector environment, arrays or tensors, all autoreset modes."""

    def __init__(self, env: VectorEnv[Any, Any, Any], weight: float) -> None:
        super().__init__(env)
        _num_classes(env.single_action_space)
        self.weight = _check_weight(weight)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Plays a step in every lane; see the environment."""
        import torch

        inner: Any = self.env.unwrapped
        answers, starting = inner.labels, inner.is_over  # lanes that begin anew ignore their action
        observation, reward, terminated, truncated, info = self.env.step(actions)
        label = torch.as_tensor(actions["label"], device=answers.device).reshape(-1)
        is_right = (label == answers) & ~torch.as_tensor(terminated, device=answers.device)
        if starting.any():
            is_right &= ~torch.as_tensor(starting, device=answers.device)
        bonus = self.weight * is_right
        reward = reward + (bonus if is_torch_array(reward) else bonus.cpu().numpy())
        return observation, reward, terminated, truncated, info
