"""Evaluation: the Policy protocol, and the only definition of a policy's error and its interval."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
from gymnasium.vector import AutoresetMode
from scipy.stats import binomtest
from torch import Tensor

from ram_gym import scenes
from ram_gym.config import GlimpseConfig
from ram_gym.vector_env import GlimpseVectorEnv

ProtocolName = Literal["single", "average-10"]
NUM_ROLLOUTS: dict[str, int] = {"single": 1, "average-10": 10}
"""How many rollouts of each scene a protocol looks at."""


class Policy(Protocol):
    """Anything that plays: an observation and its own memory in, an action and its new memory out."""

    name: str

    def act(self, observation: dict[str, Any], state: Any) -> tuple[dict[str, Any], Any]:
        """The next action of N episodes. `state` is None at their first step, then what the last call returned.

        The action has `location` (N, 2) and `label` (N,), as GlimpseVectorEnv takes them, and may have
        `log_probabilities` (N, L), of the label, which protocol "average-10" needs.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How a policy did on a split's scenes."""

    task: str
    policy: str
    protocol: ProtocolName
    split: str
    setting: GlimpseConfig
    """The environment's configuration; with the labels it tells whether two evaluations saw the same scenes."""
    labels: Tensor
    """int64 (episodes,), the right answers by image index, on the CPU."""
    predictions: Tensor
    """int64 (episodes,), the policy's answers, on the CPU."""

    @property
    def episodes(self) -> int:
        """Number of scenes."""
        return len(self.labels)

    @property
    def is_right(self) -> Tensor:
        """Bool (episodes,), by image index."""
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
        interval = binomtest(self.errors, self.episodes).proportion_ci(method="wilson")
        return 100 * float(interval.low), 100 * float(interval.high)

    def to_dict(self) -> dict[str, Any]:
        """What is reported, as a dict that `json.dumps` takes."""
        return {
            "task": self.task,
            "policy": self.policy,
            "protocol": self.protocol,
            "split": self.split,
            "episodes": self.episodes,
            "errors": self.errors,
            "error_percent": self.error_percent,
            "interval_percent": list(self.interval_percent),
        }


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A policy against a reference on the same scenes."""

    only_policy_wrong: int
    only_reference_wrong: int
    episodes: int

    @property
    def difference_percent(self) -> float:
        """The policy's error minus the reference's, in points of percent."""
        return 100 * (self.only_policy_wrong - self.only_reference_wrong) / self.episodes

    @property
    def interval_percent(self) -> tuple[float, float]:
        """95% interval of the difference, in points: normal approximation of the paired difference."""
        worse, better, n = self.only_policy_wrong, self.only_reference_wrong, self.episodes
        deviation = 100 * (worse + better - (worse - better) ** 2 / n) ** 0.5 / n
        half = 1.96 * deviation
        return self.difference_percent - half, self.difference_percent + half

    @property
    def p_value(self) -> float:
        """McNemar's exact test: how likely a difference this large is if both policies err equally often."""
        discordant = self.only_policy_wrong + self.only_reference_wrong
        return float(binomtest(self.only_policy_wrong, discordant).pvalue) if discordant else 1.0


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
    """Plays the scenes of the environment's split, image 0 first, each from the same first location for every policy.

    The scenes are those of the environment's scene seed (`EVALUATION_SCENE_SEED` unless it was given another).

    Args:
        policy: who plays.
        env: output "torch", any autoreset mode but SAME_STEP, and a fixed scene seed (the training split needs one
            given); its number of lanes is the batch size.
        task: name for the report.
        protocol: "single": one rollout a scene; "average-10": the log-probabilities of the label averaged over 10
            rollouts that differ in their first glimpse.
        episodes: how many scenes; None: all of the split.
        on_batch: called with the number of scenes played so far, after each batch.

    Returns:
        The errors; a scene counts as one episode under either protocol.

    Raises:
        ValueError: the environment or the protocol does not fit; or the policy's action does not, and then the message
            begins with the policy's name.
    """
    if env.output != "torch" or env.autoreset_mode == AutoresetMode.SAME_STEP:
        raise ValueError("env must be made with output='torch' and autoreset_mode 'Disabled' or 'NextStep'")
    if protocol not in NUM_ROLLOUTS:
        raise ValueError(f"protocol must be one of {', '.join(NUM_ROLLOUTS)}, got {protocol!r}")
    episodes = env.num_images if episodes is None else episodes
    if env.config.fixed_scene_seed is None:
        raise ValueError("env draws fresh scenes: give it a scene_seed, or the split 'validation' or 'test'")
    if not 1 <= episodes <= env.num_images:
        raise ValueError(f"episodes must lie in 1 to {env.num_images}, the images of the split, got {episodes}")
    found = torch.zeros((2, episodes), dtype=torch.int64)  # labels and predictions
    for start in range(0, episodes, env.num_envs):
        index = torch.arange(start, start + env.num_envs, device=env.device) % env.num_images
        count = min(env.num_envs, episodes - start)
        answers = torch.stack(_play(policy, env, index, NUM_ROLLOUTS[protocol]))
        found[:, start : start + count] = answers[:, :count].cpu()
        if on_batch is not None:
            on_batch(start + count)
    return Evaluation(task, policy.name, protocol, env.config.split, env.config, *found)


def _play(policy: Policy, env: GlimpseVectorEnv, index: Tensor, rollouts: int) -> tuple[Tensor, Tensor]:
    """The right labels and the answers (N,) of one batch of scenes."""
    total = None
    for rollout in range(rollouts):
        options: dict[str, Any] = {"index": index}
        if rollouts > 1:
            # Rollout 0 begins where the environment would begin.
            seeds = torch.full_like(index, env.config.fixed_scene_seed or 0)
            keys = scenes.scene_keys(index, seeds, env.config.split)
            options["location"] = scenes.first_locations(keys, rollout)
        observation, _ = env.reset(options=options)
        state = None
        for _ in range(env.config.num_glimpses):
            action, state = policy.act(observation, state)
            observation, info = _step(policy, env, action)
        if rollouts == 1:
            return info["label"], info["prediction"]
        if "log_probabilities" not in action:
            raise ValueError(f"policy {policy.name!r} gives no log_probabilities, which protocol average-10 needs")
        total = action["log_probabilities"] + (0 if total is None else total)
    assert total is not None
    return info["label"], total.argmax(-1)


def _step(policy: Policy, env: GlimpseVectorEnv, action: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        observation, _, _, _, info = env.step({k: v for k, v in action.items() if k != "log_probabilities"})
    except (ValueError, AttributeError) as error:
        raise ValueError(f"policy {policy.name!r}: {error}") from error
    return observation, info


def compare(policy: Evaluation, reference: Evaluation) -> Comparison:
    """The paired difference of two evaluations.

    Raises:
        ValueError: they were not made on the same scenes.
    """
    ours, theirs = (evaluation.setting.replace(data_root=None) for evaluation in (policy, reference))
    if ours != theirs:
        raise ValueError(f"evaluations must be of the same scenes, got {ours} and {theirs}")
    if not torch.equal(policy.labels, reference.labels):
        raise ValueError(
            f"evaluations must be of the same scenes, got {policy.episodes} and {reference.episodes} episodes "
            "with different labels"
        )
    only_policy = int((~policy.is_right & reference.is_right).sum())
    return Comparison(only_policy, int((policy.is_right & ~reference.is_right).sum()), policy.episodes)
