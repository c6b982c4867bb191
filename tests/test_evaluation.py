from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom

from ram_gym import Comparison, GlimpseConfig, GlimpseVectorEnv, compare, evaluate, scenes


def make(small_images: tuple, num_envs: int = 7, **fields: Any) -> GlimpseVectorEnv:
    arguments = {"canvas_size": 12, "num_glimpses": 2, "patch_size": 4, "split": "test"}
    arguments |= {"output": "torch", "autoreset_mode": "Disabled", **fields}
    return GlimpseVectorEnv(num_envs, dataset=small_images, **arguments)


class Answers:
    """Answers a fixed label, or the right one for the first so many images."""

    def __init__(self, env: GlimpseVectorEnv, right_until: int = 0, name: str = "answers") -> None:
        self.env, self.right_until, self.name = env, right_until, name
        self.seen: list[torch.Tensor] = []

    def act(self, observation: dict[str, Any], state: Any) -> tuple[dict[str, Any], Any]:
        if state is None:
            self.seen.append(observation["location"])
        labels = self.env.labels
        label = torch.where(self.env._index < self.right_until, labels, (labels + 1) % 5)
        return {"location": observation["location"], "label": label}, 1


@pytest.mark.parametrize("num_envs", [1, 7, 20, 33])
def test_errors_are_counted_once_an_image_whatever_the_batch(small_images: tuple, num_envs: int) -> None:
    env = make(small_images, num_envs)
    done: list[int] = []
    evaluation = evaluate(Answers(env, 13), env, task="t", on_batch=done.append)
    assert (evaluation.episodes, evaluation.errors, evaluation.error_percent) == (20, 7, 35.0)
    assert evaluation.is_right.tolist() == [True] * 13 + [False] * 7
    assert evaluation.labels.tolist() == (np.arange(20) % 5).tolist()
    assert done[-1] == 20
    assert evaluate(Answers(env, 13), env, episodes=14).errors == 1


def wilson(errors: int, n: int) -> tuple[float, float]:
    z, p = 1.959963984540054, errors / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return 100 * (middle - half) / (1 + z * z / n), 100 * (middle + half) / (1 + z * z / n)


def test_the_interval_is_wilsons(small_images: tuple) -> None:
    env = make(small_images)
    for right in (0, 7, 20):
        evaluation = evaluate(Answers(env, right), env)
        np.testing.assert_allclose(evaluation.interval_percent, wilson(20 - right, 20), atol=1e-9)
        assert evaluation.to_dict()["interval_percent"] == list(evaluation.interval_percent)


def test_paired_differences_by_hand(small_images: tuple) -> None:
    env = make(small_images)
    comparison = compare(evaluate(Answers(env, 13), env), evaluate(Answers(env, 18), env))
    assert (comparison.only_policy_wrong, comparison.only_reference_wrong) == (5, 0)
    assert comparison.difference_percent == 25.0
    assert comparison.p_value == pytest.approx(2 * 0.5**5)
    assert compare(evaluate(Answers(env, 3), env), evaluate(Answers(env, 3), env)).p_value == 1
    hand = Comparison(only_policy_wrong=30, only_reference_wrong=12, episodes=1000)
    differences = np.array([1] * 30 + [-1] * 12 + [0] * 958)
    half = 196 * differences.std() / math.sqrt(1000)
    # The score interval, tested in test_statistics.py, is near the normal approximation for so many scenes.
    np.testing.assert_allclose(hand.interval_percent, [1.8 - half, 1.8 + half], atol=0.15)
    assert hand.p_value == pytest.approx(2 * binom.cdf(12, 42, 0.5))


def test_every_policy_and_batch_gets_the_same_first_look(small_images: tuple) -> None:
    looks = []
    for num_envs in (5, 20):
        env = make(small_images, num_envs)
        policy = Answers(env)
        evaluate(policy, env)
        looks.append(torch.cat(policy.seen)[:20])
    assert torch.equal(*looks)


class Log(Answers):
    """Sure of label 1 where the first look was left of the middle, less sure of label 2 where it was right of it."""

    def act(self, observation: dict[str, Any], state: Any) -> tuple[dict[str, Any], Any]:
        if state is None:
            state = observation["location"][:, 0] < 0
        chances = torch.where(state[:, None], torch.tensor([0.1, 0.8, 0.1, 0, 0]), torch.tensor([0.2, 0.2, 0.6, 0, 0]))
        logs = (chances + 1e-9).log()
        return {
            "location": observation["location"],
            "label": logs.argmax(-1),
            "log_probabilities": logs,
        }, state


def test_average_10_averages_log_probabilities_over_ten_first_looks(small_images: tuple) -> None:
    env = make(small_images)
    evaluation = evaluate(Log(env), env, protocol="average-10")
    keys = scenes.scene_keys(torch.arange(20), torch.full((20,), 2014), "test")
    left = torch.stack([scenes.first_locations(keys, r)[:, 0] < 0 for r in range(10)]).sum(0)
    scores = [left * math.log(a) + (10 - left) * math.log(b) for a, b in ((0.1, 0.2), (0.8, 0.2), (0.1, 0.6))]
    assert torch.equal(evaluation.predictions, torch.stack(scores).argmax(0))
    assert len(set(evaluation.predictions.tolist())) == 2
    first = evaluate(Log(env), env)
    assert torch.equal(first.predictions, torch.where(scenes.first_locations(keys)[:, 0] < 0, 1, 2))
    with pytest.raises(ValueError, match="'answers' gives no log_probabilities"):
        evaluate(Answers(env), env, protocol="average-10")


def test_what_does_not_fit_is_refused(small_images: tuple) -> None:
    env = make(small_images)
    policy = Answers(env)
    with pytest.raises(ValueError, match="output='torch'"):
        evaluate(policy, make(small_images, output="numpy"))
    with pytest.raises(ValueError, match="autoreset"):
        evaluate(policy, make(small_images, autoreset_mode="SameStep"))
    with pytest.raises(ValueError, match="fresh scenes"):
        evaluate(policy, make(small_images, split="train"))
    with pytest.raises(ValueError, match="1 to 20"):
        evaluate(policy, env, episodes=21)
    with pytest.raises(ValueError, match="single, average-10"):
        evaluate(policy, env, protocol="best")  # type: ignore[arg-type]
    whole = evaluate(policy, env)
    for other in (make(small_images, scene_seed=1), make(small_images, canvas_size=13)):
        with pytest.raises(ValueError, match="same scenes"):
            compare(evaluate(Answers(other), other), whole)
    with pytest.raises(ValueError, match="same scenes"):
        compare(evaluate(policy, env, episodes=5), whole)
    seeded = make(small_images, split="train", scene_seed=3)
    assert evaluate(Answers(seeded, 4), seeded).errors == 16


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ({"location": torch.zeros(7, 3), "label": torch.zeros(7, dtype=torch.int64)}, r"'odd': .*\(7, 2\)"),
        ({"location": torch.full((7, 2), torch.nan), "label": torch.zeros(7, dtype=torch.int64)}, "'odd': .*finite"),
        ({"location": torch.zeros(7, 2), "label": torch.full((7,), 9)}, r"'odd': .*\[0, 5\)"),
        ({"location": torch.zeros(7, 2)}, "'odd': .*no label"),
        (torch.zeros(7, 2), "'odd'"),
    ],
)
def test_a_policy_whose_action_does_not_fit_is_named(small_images: tuple, action: Any, message: str) -> None:
    class Odd:
        name = "odd"

        def act(self, observation: dict[str, Any], state: Any) -> tuple[Any, Any]:
            return action, state

    with pytest.raises(ValueError, match=message):
        evaluate(Odd(), make(small_images))


def test_an_environment_works_on_after_evaluation_and_inference_mode(small_images: tuple) -> None:
    env, untouched = make(small_images), make(small_images)
    evaluate(Answers(env), env)
    with torch.inference_mode():
        env.reset(seed=3)
        labels = torch.zeros(7, dtype=torch.int64)
        env.step({"location": torch.zeros(7, 2), "label": labels})
        env.step({"location": torch.zeros(7, 2), "label": labels})
    mask = torch.arange(7) < 3
    untouched.reset(seed=3)
    ours = [
        e.reset(options={"reset_mask": mask, "index": torch.arange(7), "scene_seed": 5})[0] for e in (env, untouched)
    ]
    assert torch.equal(ours[0]["glimpse"][:3], ours[1]["glimpse"][:3])
    weight = torch.ones(1, requires_grad=True)
    (ours[0]["glimpse"] * weight).sum().backward()


def test_the_config_that_is_compared_ignores_where_the_files_lie() -> None:
    assert GlimpseConfig(data_root="a").replace(data_root=None) == GlimpseConfig()
