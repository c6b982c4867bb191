"""Registers tasks with Gymnasium: ram_gym's own when it is imported, and those of `register_task`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from typing import Any

import gymnasium as gym

from ram_gym.config import CUSTOM_DATASET, GlimpseConfig
from ram_gym.tasks import FREE_ENV_ID, TASKS, Task

ENTRY_POINT = "ram_gym.env:GlimpseEnv"
VECTOR_ENTRY_POINT = "ram_gym.vector_env:GlimpseVectorEnv"

TASKS_VARIABLE = "RAM_GYM_TASKS"
"""The environment variable that hands registered tasks on to processes that this one starts: a JSON object."""

WRAPPERS = (
    "BoxAction",
    "MultiDiscreteAction",
    "DiscreteAction",
    "ProgressObservation",
    "EveryAnswerReward",
    "FlattenObservation",
)
"""What a registered task may be wrapped in: names in `ram_gym.wrappers`, where vector forms have "Vector" in front."""

_OWN_NAMES = {*TASKS, *(task.env_id for task in TASKS.values()), FREE_ENV_ID}


def register_tasks() -> None:
    """Registers the tasks' ids and the free one, as strings, so that nothing is imported before it is made.

    And the tasks that a parent process has registered.

    Raises:
        ValueError: $RAM_GYM_TASKS is not what `register_task` writes.
    """
    for env_id, overrides in [(task.env_id, task.overrides) for task in TASKS.values()] + [(FREE_ENV_ID, {})]:
        gym.register(env_id, entry_point=ENTRY_POINT, vector_entry_point=VECTOR_ENTRY_POINT, kwargs=dict(overrides))
    try:
        for name, (overrides, wrappers) in json.loads(os.environ.get(TASKS_VARIABLE) or "{}").items():
            _register(name, overrides, wrappers)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"${TASKS_VARIABLE} must hold what register_task wrote; unset it: {error}") from error


def register_task(
    name: str, *, dataset: str | os.PathLike[str] | None = None, wrappers: Sequence[Any] = (), **fields: Any
) -> Task:
    """Gives a task of your own a name, which `gym.make`, `gym.make_vec`, `get_task` and libraries that take ids find.

    Processes that this one starts afterwards find it too, once they import ram_gym: it is handed on in the environment
    variable RAM_GYM_TASKS.

    Args:
        name: a Gymnasium id such as "MyLab/Flowers-v0"; or a word such as "flowers", for "RamGym/flowers-v0".
        dataset: a dataset's name, or the path of a folder of images or of an .npz file; see `load_dataset`.
        wrappers: what the environment is wrapped in, the innermost first: names, or pairs (name, arguments), of
            "BoxAction", "MultiDiscreteAction", "DiscreteAction", "ProgressObservation", "EveryAnswerReward" and
            "FlattenObservation". `gym.make_vec` takes their vector forms.
        fields: fields of `GlimpseConfig`. They can be given anew to `gym.make`: `split="test"`.

    Returns:
        The task; its config is that of the environment without wrappers.

    Raises:
        TypeError: a field is unknown or has the wrong type, or arguments of a wrapper are no dict.
        ValueError: a field is out of range; the name is one of ram_gym's own or makes no Gymnasium id; a wrapper is
            unknown; or `dataset` is none of a name or path. Nothing is registered then.

    Example:
        ram_gym.register_task("flowers", dataset="data/flowers", wrappers=["FlattenObservation"], canvas_size=64)
        env = gym.make("RamGym/flowers-v0")
    """
    if dataset is not None:
        if not isinstance(dataset, str | os.PathLike) or dataset == CUSTOM_DATASET:
            raise ValueError(
                "dataset must be a name or a path, which other processes can read; write arrays with "
                f"numpy.savez(path, images=images, labels=labels) and give the path, got {type(dataset).__name__}"
            )
        fields = {"dataset": dataset, **fields}
    config = GlimpseConfig().replace(**fields)
    overrides = {key: getattr(config, key) for key in fields}
    if config.data_path is not None:
        overrides["dataset"] = str(config.data_path)  # other processes may have another current folder
    pairs = [_wrapper(given) for given in wrappers]
    task = _register(name, overrides, pairs)
    registered = json.loads(os.environ.get(TASKS_VARIABLE) or "{}")
    registered[name] = [overrides, pairs]
    os.environ[TASKS_VARIABLE] = json.dumps(registered)
    return task


def _wrapper(given: Any) -> list[Any]:
    """A name, or a pair of a name and arguments, as a pair that JSON gives back as it is."""
    name, arguments = (given, {}) if isinstance(given, str) else given
    _wrapper_class(name, is_vector=False)
    return [name, json.loads(json.dumps(dict(arguments)))]


def _wrapper_class(name: Any, *, is_vector: bool) -> Any:
    import gymnasium.wrappers

    from ram_gym import wrappers

    if name not in WRAPPERS:
        raise ValueError(f"wrappers must be of {', '.join(WRAPPERS)}, got {name!r}")
    if name == "FlattenObservation" and not is_vector:
        return gymnasium.wrappers.FlattenObservation
    return getattr(wrappers, f"Vector{name}" if is_vector else name)


def _register(name: str, overrides: dict[str, Any], wrappers: list[list[Any]]) -> Task:
    if not isinstance(name, str) or name in _OWN_NAMES:
        raise ValueError(f"name must be one that ram_gym does not use itself, got {name!r}")
    env_id = name if re.search(r"/|-v\d+$", name) else f"RamGym/{name}-v0"
    if not re.fullmatch(r"([\w:-]+/)?[\w:.-]+-v\d+", env_id) or env_id in _OWN_NAMES:
        raise ValueError(f"name must be a word or an id such as 'MyLab/Task-v0', got {name!r}")
    task = Task(env_id, overrides, "registered by register_task")
    kwargs: dict[str, Any] = {**overrides, "wrapped_in": wrappers} if wrappers else dict(overrides)
    entry_point = "ram_gym.registration:make_env" if wrappers else ENTRY_POINT
    vector_entry_point = "ram_gym.registration:make_vector_env" if wrappers else VECTOR_ENTRY_POINT
    spec = gym.registry.get(env_id)
    if spec is None or spec.kwargs != kwargs:
        gym.register(env_id, entry_point=entry_point, vector_entry_point=vector_entry_point, kwargs=kwargs)
    TASKS[name] = task
    return task


def make_env(wrapped_in: Sequence[Any] = (), **fields: Any) -> gym.Env[Any, Any]:
    """The environment of a registered task with wrappers."""
    from ram_gym.env import GlimpseEnv

    env: Any = GlimpseEnv(**fields)
    for name, arguments in wrapped_in:
        env = _wrapper_class(name, is_vector=False)(env, **arguments)
    return env


def make_vector_env(num_envs: int = 1, wrapped_in: Sequence[Any] = (), **fields: Any) -> Any:
    """The vector environment of a registered task with wrappers."""
    from ram_gym.vector_env import GlimpseVectorEnv

    envs: Any = GlimpseVectorEnv(num_envs, **fields)
    for name, arguments in wrapped_in:
        envs = _wrapper_class(name, is_vector=True)(envs, **arguments)
    return envs
