"""Policies of what is not one yet: functions, torch modules, Stable-Baselines3 models (without importing it)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.spaces.utils import flatten_space

from ram_gym.coordinates import as_numpy
from ram_gym.evaluation import Policy
from ram_gym.vector_env import GlimpseVectorEnv
from ram_gym.wrappers import PROGRESS, VectorBoxAction, VectorDiscreteAction, VectorMultiDiscreteAction


def as_policy(
    player: Any, *, name: str | None = None, env: GlimpseVectorEnv | None = None, answers_early: bool = False
) -> Policy:
    """A policy for `ram_gym.evaluate`.

    Args:
        player: what plays.
            A function or a `torch.nn.Module`: `player(observation)` gives an action, or `player(observation, state)`
            an action and the next state. Observations hold tensors on the environment's device; the state is None at
            the first step. An action is a dict of `location` (N, 2) and `label` (N,), tensors or arrays, and may have
            `log_probabilities` (N, L). A module is played as it is: call its `eval()` before. It may be compiled
            (`torch.compile`), traced or scripted, or in a wrapper such as DataParallel.
            A Stable-Baselines3 model, or anything with its `predict` and spaces: see `Sb3Policy`.
            A policy: only its name is changed, if one is given.
        name: for reports; default: the policy's, the function's or the class's.
        env: what a Stable-Baselines3 model will play; others do not need it.
        answers_early: whether the labels given before the last step are answers too.

    Raises:
        ValueError: it is none of these, or a model was trained for another task; the message has the name.

    Example:
        >>> def stay(observation):
        ...     return {"location": observation["location"], "label": [7] * len(observation["location"])}
        >>> as_policy(stay).name
        'stay'
    """
    is_policy = callable(getattr(player, "act", None)) and not isinstance(player, torch.nn.Module)
    own_name = getattr(player, "name", None) if is_policy else None
    inner = _unwrapped(player)
    own_name = own_name or getattr(inner, "__name__", None) or getattr(inner, "original_name", None)
    name = name or own_name or type(inner).__name__
    if is_policy:
        return _FunctionPolicy(player.act, name, answers_early or getattr(player, "answers_early", False), 2)
    if callable(getattr(player, "predict", None)) and hasattr(player, "action_space"):
        if env is None:
            raise ValueError(f"policy {name!r}: a Stable-Baselines3 model needs env=, the environment it will play")
        return Sb3Policy(player, env, name, answers_early)
    if not callable(player):
        raise ValueError(f"policy {name!r} must be a function, a torch module or a Stable-Baselines3 model")
    called = inner.forward if isinstance(inner, torch.nn.Module) else inner
    return _FunctionPolicy(player, name, answers_early, _num_arguments(called, name))


def _unwrapped(player: Any) -> Any:
    """The module that a module hands its arguments on to: it has one child and takes whatever arguments there are.

    So do `torch.compile`, DataParallel, DistributedDataParallel and AveragedModel.
    """
    while isinstance(player, torch.nn.Module) and not isinstance(player, torch.jit.ScriptModule):
        kinds = {parameter.kind for parameter in inspect.signature(player.forward).parameters.values()}
        children = list(player.children())
        if len(children) != 1 or kinds - {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
            break
        (player,) = children
    return player


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    """The signature of a function or of what TorchScript made of one.

    Raises:
        ValueError: it has none, as some builtins.
    """
    schema = getattr(function, "schema", None)
    if not isinstance(schema, torch._C.FunctionSchema):
        return inspect.signature(function)
    kind, none = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
    arguments = [argument for argument in schema.arguments if argument.name != "self"]
    defaults = [argument.default_value if argument.has_default_value() else none for argument in arguments]
    return inspect.Signature(
        [inspect.Parameter(a.name, kind, default=value) for a, value in zip(arguments, defaults, strict=True)]
    )


def _num_arguments(function: Callable[..., Any], name: str) -> int:
    """1 for (observation), 2 for (observation, state)."""
    signature = _signature(function)
    parameters = signature.parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    takes_state = any(p.name == "state" for p in positional) or len(required) == 2
    if not positional or len(required) > 2 or any(p.kind == p.KEYWORD_ONLY for p in required):
        raise ValueError(f"policy {name!r} must take (observation) or (observation, state), got {signature}")
    return 2 if takes_state else 1


class _FunctionPolicy:
    """A function of (observation) or of (observation, state)."""

    def __init__(self, function: Callable[..., Any], name: str, answers_early: bool, num_arguments: int) -> None:
        self.function, self.name = function, name
        self.answers_early, self.num_arguments = answers_early, num_arguments

    def act(self, observation: dict[str, Any], state: Any) -> tuple[dict[str, Any], Any]:
        """The next action; see `ram_gym.Policy`."""
        if self.num_arguments == 1:
            return self.function(observation), 0
        return self.function(observation, state)


class Sb3Policy:
    """A Stable-Baselines3 model, recurrent or not, as a `ram_gym.Policy` that takes the likeliest action.

    It gives no log-probabilities, so it plays protocol "single" alone.

    A model whose environment is in a VecNormalize plays observations that are normalized by it, as in training. Whether
    a model that was loaded without an environment had one cannot be told: it plays observations as they are. Load it
    with its VecNormalize, `PPO.load(path, env=VecNormalize.load(statistics, env))`. Wrappers inside the environment
    that change observations, Gymnasium's NormalizeObservation for instance, cannot be told either.

    Args:
        model: anything with `predict(observation, state, episode_start, deterministic)`, `observation_space` and
            `action_space`. Actions may have any form that a wrapper of `ram_gym.wrappers` gives them. Observations may
            be GlimpseEnv's own or have `progress` too (glimpses taken as a share of all), and may be flattened.
        env: what it will play; it need not be in a wrapper.
        name: for reports.
        answers_early: whether the labels given before the last step are answers too.

    Raises:
        ValueError: the model was trained for other observations or actions than the environment's.
    """

    def __init__(self, model: Any, env: GlimpseVectorEnv, name: str = "sb3", answers_early: bool = False) -> None:
        self.model, self.name, self.answers_early = model, name, answers_early
        self.num_glimpses = env.config.num_glimpses
        own = env.single_observation_space
        assert isinstance(own, spaces.Dict)
        known = [own, spaces.Dict({**own.spaces, "progress": PROGRESS})]
        fitting = [space for space in known if model.observation_space in (space, flatten_space(space))]
        if not fitting:
            raise ValueError(
                f"policy {name!r} was trained on another task: it takes observations {model.observation_space}, "
                f"the environment gives {own}"
            )
        self.keys = list(fitting[0].spaces)
        normalizer = getattr(model, "get_vec_normalize_env", lambda: None)()
        self.normalize = normalizer.normalize_obs if normalizer is not None else lambda given: given
        self.is_flat = not isinstance(model.observation_space, spaces.Dict)
        self.decode = _wrap(env, model.action_space, name).actions

    def act(self, observation: dict[str, Any], state: Any) -> tuple[dict[str, Any], Any]:
        """The next action; the state is the model's own and the number of glimpses taken."""
        memory, num_taken = state or (None, 0)
        num_taken += 1
        num = len(observation["location"])
        seen = {key: as_numpy(value) for key, value in observation.items()}
        seen["progress"] = np.full((num, 1), num_taken / self.num_glimpses, np.float32)
        seen = {key: seen[key] for key in self.keys}
        given: Any = np.concatenate([v.reshape(num, -1) for v in seen.values()], axis=1) if self.is_flat else seen
        starts = np.full(num, memory is None)
        given = self.normalize(given)
        actions, memory = self.model.predict(given, state=memory, episode_start=starts, deterministic=True)
        return self.decode(actions), (memory, num_taken)


def _wrap(env: GlimpseVectorEnv, space: Any, name: str) -> Any:
    """The environment in the wrapper whose actions are in a model's action space."""
    labels = env.num_classes
    if isinstance(space, spaces.MultiDiscrete) and space.shape == (3,) and space.nvec[0] == space.nvec[1]:
        wrapper: Any = VectorMultiDiscreteAction(env, int(space.nvec[0]))
    elif isinstance(space, spaces.Discrete) and round((int(space.n) / labels) ** 0.5) >= 1:
        wrapper = VectorDiscreteAction(env, round((int(space.n) / labels) ** 0.5))
    else:
        wrapper = VectorBoxAction(env)
    if wrapper.single_action_space != space:
        raise ValueError(
            f"policy {name!r} was trained on another task: it gives actions {space}, the environment has {labels} "
            "labels and takes those of ram_gym.wrappers.BoxAction, MultiDiscreteAction or DiscreteAction"
        )
    return wrapper
