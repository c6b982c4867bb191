"""Evaluation: the Policy protocol, and the only definition of a policy's accuracy and error.

Longer than other files here: a policy, its evaluation and the numbers computed from it are one contract.
"""

from __future__ import annotations

import dataclasses
import functools
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol, TypeVar

import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from ram_gym import scenes
from ram_gym.arguments import as_integer, check_actions, numbers
from ram_gym.config import GlimpseConfig
from ram_gym.datasets import is_centred
from ram_gym.statistics import Comparison, wilson_percent
from ram_gym.vector_env import GlimpseVectorEnv

ProtocolName = Literal["single", "average-10"]
NUM_ROLLOUTS: dict[str, int] = {"single": 1, "average-10": 10}
"""Number of rollouts of each scene, by protocol."""


class Policy(Protocol):
    """Anything that maps an observation and its own state to an action and its next state.

    A policy whose label is an answer at every step, not only at the last, has an attribute `answers_early = True`.
    `ram_gym.as_policy` makes policies of functions, torch modules and Stable-Baselines3 models.
    """

    name: str
    """Its name in reports."""

    def act(self, observation: dict[str, Any], state: Any) -> tuple[dict[str, Any], Any]:
        """The next action of N episodes, called T times an episode, without gradient.

        Args:
            observation: `glimpse`, float32 (N, K * C, P, P) in [0, 1], and `location`, float32 (N, 2), tensors on the
                environment's device; N is always its number of lanes.
            state: None at the first step of an episode, then the state that the last call returned.

        Returns:
            The action and the next state. The action has `location` (N, 2) and `label` (N,), as GlimpseVectorEnv takes
            them; only the last label is the answer. It may have `log_probabilities` (N, L) of the labels, which
            protocol "average-10" needs.
        """
        ...


Class = TypeVar("Class", bound=type)


def _take_setting(kind: Class) -> Class:
    """Lets a dataclass be made with its field `env_config` by the old name, `setting`, which is deprecated."""
    make = kind.__init__  # type: ignore[misc]

    @functools.wraps(make)
    def __init__(self: Any, *args: Any, **fields: Any) -> None:
        if "setting" in fields:
            name = f"{kind.__name__}(setting=...)"
            warnings.warn(f"{name} is deprecated: use env_config", DeprecationWarning, stacklevel=2)
            fields["env_config"] = fields.pop("setting")
        make(self, *args, **fields)

    kind.__init__ = __init__  # type: ignore[misc]
    return kind


@_take_setting
@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How well a policy did on a split's scenes. Tensors are on the CPU, in the order of the images.

    T is the number of glimpses. Under protocol "average-10" the predictions are those of all rollouts together.
    Answers, locations and what is computed from them are of the first rollout, the one that protocol "single" plays.
    """

    task: str
    policy: str
    protocol: ProtocolName
    split: str
    env_config: GlimpseConfig
    """The environment config; with the labels it decides whether two evaluations are of the same scenes."""
    num_classes: int
    """Number L of labels."""
    answers_early: bool
    """Whether labels before the last step are answers too."""
    seconds: float
    """Wall-clock seconds of playing, including the making of scenes and glimpses."""
    labels: Tensor
    """int64 (episodes,): the right answers."""
    predictions: Tensor
    """int64 (episodes,): the policy's answers."""
    answers: Tensor
    """int64 (episodes, T): the policy's label after each glimpse."""
    locations: Tensor
    """float32 (episodes, T, 2): the location of each glimpse; the environment chose the first."""
    digit_locations: Tensor | None
    """float32 (episodes, 2): the location of the image's centre on the canvas. None for natural images and the caller's
    own where they are as large as the canvas, since nothing tells where in them the object is."""
    class_names: tuple[str, ...] | None = None
    """L names; None where classes have numbers only."""

    @property
    def setting(self) -> GlimpseConfig:
        """Deprecated: use `env_config`."""
        warnings.warn("Evaluation.setting is deprecated: use env_config", DeprecationWarning, stacklevel=2)
        return self.env_config

    @property
    def episodes(self) -> int:
        """Number of scenes, one episode each."""
        return len(self.labels)

    @property
    def is_right(self) -> Tensor:
        """Whether each answer is right: bool (episodes,)."""
        return self.predictions == self.labels

    @property
    def errors(self) -> int:
        """Number of wrong answers."""
        return int((~self.is_right).sum())

    @property
    def error_percent(self) -> float:
        """Wrong answers in percent."""
        return 100 * self.errors / self.episodes

    @property
    def interval_percent(self) -> tuple[float, float]:
        """95% Wilson score interval of the error, in percent."""
        return wilson_percent(self.errors, self.episodes)

    @property
    def accuracy_percent(self) -> float:
        """Right answers in percent."""
        return 100 * (self.episodes - self.errors) / self.episodes

    @property
    def accuracy_interval_percent(self) -> tuple[float, float]:
        """95% Wilson score interval of the accuracy, in percent."""
        return wilson_percent(self.episodes - self.errors, self.episodes)

    @property
    def right_by_glimpse(self) -> list[int] | None:
        """Number of right answers after each glimpse; None unless the policy answers early."""
        return (self.answers == self.labels[:, None]).sum(0).tolist() if self.answers_early else None

    @property
    def accuracy_by_glimpse_percent(self) -> list[float] | None:
        """Right answers after each glimpse, in percent; None unless the policy answers early."""
        counts = self.right_by_glimpse
        return None if counts is None else [100 * count / self.episodes for count in counts]

    @property
    def distance_by_glimpse_pixels(self) -> list[float] | None:
        """Mean distance of each glimpse's location from the image's centre, in canvas pixels.

        None where `digit_locations` is.
        """
        if self.digit_locations is None:
            return None
        offsets = (self.locations - self.digit_locations[:, None]).double()
        return (offsets.norm(dim=-1).mean(0) * (self.env_config.canvas_size / 2)).tolist()

    @property
    def spread_by_glimpse_pixels(self) -> list[float]:
        """How much each glimpse's location varies between scenes, in canvas pixels.

        Root mean square distance from the mean location. It is 0 if a policy looks at the same place in every scene.
        """
        offsets = self.locations.double() - self.locations.double().mean(0)
        return (offsets.square().sum(-1).mean(0).sqrt() * (self.env_config.canvas_size / 2)).tolist()

    @property
    def confusion(self) -> Tensor:
        """int64 (L, L): number of scenes of each label (row) that got each prediction (column). 8 L^2 bytes."""
        cells = self.labels * self.num_classes + self.predictions
        return cells.bincount(minlength=self.num_classes**2).reshape(self.num_classes, self.num_classes)

    @property
    def class_error_percent(self) -> list[float | None]:
        """Wrong answers among the scenes of each label, in percent; None for a label without scenes."""
        labels = (self.labels, self.labels[self.is_right])
        totals, right = (some.bincount(minlength=self.num_classes).tolist() for some in labels)
        return [100 * (n - r) / n if n else None for n, r in zip(totals, right, strict=True)]

    def subset(self, is_in: Tensor) -> Evaluation:
        """The evaluation of some of the scenes.

        Args:
            is_in: bool (episodes,): which scenes; at least one.

        Raises:
            ValueError: `is_in` has another shape or dtype, or no True.
        """
        if is_in.dtype != torch.bool or is_in.shape != (self.episodes,) or not is_in.any():
            raise ValueError(
                f"is_in must be bool ({self.episodes},) with a True, got {is_in.dtype} {tuple(is_in.shape)}"
            )
        share = float(is_in.double().mean())
        names = ("labels", "predictions", "answers", "locations", "digit_locations")
        parts: dict[str, Any] = {name: getattr(self, name)[is_in] for name in names if getattr(self, name) is not None}
        return dataclasses.replace(self, seconds=self.seconds * share, **parts)

    @property
    def scenes_per_second(self) -> float:
        """Scenes played per second; all rollouts of a scene count as one."""
        return self.episodes / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """The results as a dict that `json.dumps` takes; deterministic, except for what the policy draws at random."""
        return {
            "task": self.task,
            "policy": self.policy,
            "protocol": self.protocol,
            "split": self.split,
            "episodes": self.episodes,
            "errors": self.errors,
            "error_percent": self.error_percent,
            "interval_percent": list(self.interval_percent),
            "accuracy_percent": self.accuracy_percent,
            "accuracy_interval_percent": list(self.accuracy_interval_percent),
            "accuracy_by_glimpse_percent": self.accuracy_by_glimpse_percent,
            "distance_by_glimpse_pixels": self.distance_by_glimpse_pixels,
            "spread_by_glimpse_pixels": self.spread_by_glimpse_pixels,
        }


@torch.inference_mode()
def evaluate(
    policy: Policy,
    env: GlimpseVectorEnv,
    *,
    task: str = "",
    protocol: ProtocolName = "single",
    episodes: int | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Evaluation:
    """Plays the scenes of the environment's split, image 0 first. Every policy gets the same first locations.

    The scenes are those of the environment's scene seed, `EVALUATION_SCENE_SEED` by default.

    Args:
        policy: the policy to evaluate.
        env: output "torch", any autoreset mode but SAME_STEP, and a fixed scene seed (the training split needs one
            given); its number of lanes is the batch size.
        task: name of the task in reports.
        protocol: "single": one rollout a scene; "average-10": the log-probabilities of the label averaged over 10
            rollouts that differ in their first glimpse.
        episodes: number of scenes; None: all of the split. The last batch is filled up with scenes that do not count.
        on_batch: called with the number of scenes played so far, after each batch.

    Returns:
        The answers and the locations; a scene counts as one episode under either protocol.

    Raises:
        ValueError: the environment, the protocol or the policy's action is not as described. If it is the action, the
            message begins with the policy's name.
    """
    if not isinstance(env, GlimpseVectorEnv):
        raise ValueError(f"env must be a GlimpseVectorEnv, without wrappers, got {env}")
    if env.output != "torch" or env.autoreset_mode == AutoresetMode.SAME_STEP:
        raise ValueError("env must be made with output='torch' and autoreset_mode 'Disabled' or 'NextStep'")
    if protocol not in NUM_ROLLOUTS:
        raise ValueError(f"protocol must be one of {', '.join(NUM_ROLLOUTS)}, got {protocol!r}")
    if not isinstance(getattr(policy, "name", None), str) or not callable(getattr(policy, "act", None)):
        raise ValueError(
            "policy must have a name (str) and a method act(observation, state), "
            f"got {policy!r}; ram_gym.as_policy makes one of a function, a torch module or a Stable-Baselines3 model"
        )
    episodes = env.num_images if episodes is None else episodes
    if env.config.fixed_scene_seed is None:
        raise ValueError(
            "env draws fresh scenes in each episode: give it a scene_seed, or the split 'validation' or 'test'"
        )
    number = as_integer(episodes)
    if number is None or not 1 <= number <= env.num_images:
        raise ValueError(f"episodes must be an int in 1 to {env.num_images}, the images of the split, got {episodes!r}")
    episodes = number
    batches, seconds = [], 0.0
    for start in range(0, episodes, env.num_envs):
        began = time.perf_counter()
        index = torch.arange(start, start + env.num_envs, device=env.device) % env.num_images
        count = min(env.num_envs, episodes - start)
        # Two copies to the host a batch: nothing else waits for the device.
        integers, numbers = (part[:count].cpu() for part in _play(policy, env, index, NUM_ROLLOUTS[protocol]))
        seconds += time.perf_counter() - began
        if not integers[:, 0].all():
            raise ValueError(
                f"policy {policy.name!r}: a location or a log-probability is NaN or infinite, or a label "
                f"is not in [0, {env.num_classes})"
            )
        batches.append((integers, numbers))
        if on_batch is not None:
            on_batch(start + count)
    integers, numbers = (torch.cat(parts) for parts in zip(*batches, strict=True))
    places = numbers.unflatten(1, (-1, 2))
    are_scenes = not is_centred(env.config.dataset) and scenes.fill_canvas(env._image_shape, env.config)
    return Evaluation(
        task=task,
        policy=policy.name,
        protocol=protocol,
        split=env.config.split,
        env_config=env.config,
        num_classes=env.num_classes,
        answers_early=bool(getattr(policy, "answers_early", False)),
        seconds=seconds,
        labels=integers[:, 1].clone(),
        predictions=integers[:, 2].clone(),
        answers=integers[:, 3:].clone(),
        locations=places[:, :-1].clone(),
        digit_locations=None if are_scenes else places[:, -1].clone(),
        class_names=env.class_names,
    )


def _play(policy: Policy, env: GlimpseVectorEnv, index: Tensor, rollouts: int) -> tuple[Tensor, Tensor]:
    """One batch of scenes, on the environment's device.

    Returns:
        int64 (N, 3 + T): whether the actions are valid, label, prediction, and the answer after each glimpse; float32
        (N, 2 T + 2): the location of each glimpse, and of the image's centre. Answers and locations are of the first
        rollout.
    """
    is_valid = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
    total = torch.zeros(env.num_envs, env.num_classes, device=env.device)
    integers, numbers = [], []
    for rollout in range(rollouts):
        options: dict[str, Any] = {"index": index}
        if rollouts > 1:
            # Rollout 0 begins at the first location that the environment itself would choose.
            seeds = torch.full_like(index, env.config.fixed_scene_seed or 0)
            keys = scenes.scene_keys(index, seeds, env.config.split)
            options["location"] = scenes.first_locations(keys, rollout)
        observation, _ = env.reset(options=options)
        state = None
        for _ in range(env.config.num_glimpses):
            place = observation["location"].clone()
            action, state = _act(policy, observation, state)
            given = {key: value for key, value in action.items() if key != "log_probabilities"}
            with _blaming(policy):
                checked = check_actions(given, env.num_classes, env.num_envs, env.device)
            # Bad values on a GPU become 0 here, so that the environment has no error to report later.
            (location, is_finite), (label, is_label) = (part.or_zero() for part in checked)
            if is_finite is not None:
                is_valid &= is_finite.all(-1)
            if is_label is not None:
                is_valid &= is_label
            observation, _, _, _, info = env.step({"location": location, "label": label})
            if rollout == 0:
                numbers.append(place)
                integers.append(label)
        if rollout == 0:
            numbers.append(env.digit_locations)
            prediction = info["prediction"]
        if rollouts > 1:
            logs = _log_probabilities(policy, action, env)
            is_valid &= (logs < torch.inf).all(-1)  # -inf is the logarithm of 0; NaN is not below anything
            total += logs
    if rollouts > 1:
        prediction = total.argmax(-1)
    columns = (is_valid.to(torch.int64), info["label"], prediction, *integers)
    return torch.stack(columns, 1), torch.cat(numbers, 1)


def _act(policy: Policy, observation: dict[str, Any], state: Any) -> tuple[dict[str, Any], Any]:
    try:
        result = policy.act(observation, state)
    except Exception as error:
        error.add_note(f"raised by policy {policy.name!r}")
        raise
    if not isinstance(result, tuple) or len(result) != 2:
        raise ValueError(f"policy {policy.name!r}: act must return (action, state), got {type(result).__name__}")
    if not hasattr(result[0], "keys"):
        raise ValueError(
            f"policy {policy.name!r}: the action must be a dict with location and label, got {type(result[0]).__name__}"
        )
    return result


def _log_probabilities(policy: Policy, action: dict[str, Any], env: GlimpseVectorEnv) -> Tensor:
    if "log_probabilities" not in action:
        raise ValueError(f"policy {policy.name!r} gives no log_probabilities, which protocol average-10 needs")
    shape = (env.num_envs, env.num_classes)
    with _blaming(policy):
        given = action["log_probabilities"]
        logs = numbers("log_probabilities", given, f"numbers {shape}", env.device)
        if tuple(logs.shape) != shape:
            raise ValueError(f"log_probabilities must be numbers {shape}, got shape {tuple(logs.shape)}")
    return torch.as_tensor(logs, device=env.device)


@contextmanager
def _blaming(policy: Policy) -> Iterator[None]:
    """Names the policy in the environment's errors about its action."""
    try:
        yield
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"policy {policy.name!r}: {error}") from error


_SENSOR_FIELDS = ("data_root", "num_glimpses", "patch_size", "num_scales", "scale_factor")
"""Fields of GlimpseConfig that do not change the scenes."""


def compare(policy: Evaluation, reference: Evaluation) -> Comparison:
    """The paired difference of two evaluations: the policy's minus the reference's.

    The scenes must be the same; number of glimpses, patch size and scales may differ. Of your own images only the
    labels are compared, so two datasets with the same labels count as one. Different protocols are accepted here;
    `ComparisonTable` refuses them.

    Raises:
        ValueError: datasets, canvases, clutter, scene seeds or labels differ, so the scenes are not the same.
    """
    ours, theirs = policy.env_config.to_dict(), reference.env_config.to_dict()
    differing = [name for name in ours if name not in _SENSOR_FIELDS and ours[name] != theirs[name]]
    if differing:
        texts = (", ".join(f"{name}={fields[name]!r}" for name in differing) for fields in (ours, theirs))
        raise ValueError(f"evaluations must be of the same scenes, got {' and '.join(texts)}")
    if not torch.equal(policy.labels, reference.labels):
        raise ValueError(
            f"evaluations must be of the same scenes, got {policy.episodes} and {reference.episodes} episodes "
            "with different labels"
        )
    only_policy = int((~policy.is_right & reference.is_right).sum())
    return Comparison(only_policy, int((policy.is_right & ~reference.is_right).sum()), policy.episodes)
