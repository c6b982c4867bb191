"""What an evaluation keeps of each episode, against loops and single environments; and whom errors name."""

from __future__ import annotations

import dataclasses
import json
import statistics
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from ram_gym import ComparisonTable, Evaluation, GlimpseEnv, GlimpseVectorEnv, compare, evaluate, scenes, wrappers

SHAPE = {"canvas_size": 12, "num_glimpses": 3, "patch_size": 4, "split": "test"}


def make(small_images: tuple, num_envs: int = 7, **fields: Any) -> GlimpseVectorEnv:
    options = {**SHAPE, "output": "torch", "autoreset_mode": "Disabled", **fields}
    return GlimpseVectorEnv(num_envs, dataset=small_images, **options)


def plan(index: int, step: int) -> tuple[list[float], int]:
    """Where the known policy looks and what it answers at a step (0, 1, ...) of a scene."""
    right = index % 5
    # Scene i is right from its step i % 4 on, so never where that is 3.
    return [0.1 * (index % 7) - 0.3, 0.5 - 0.4 * step], right if step >= index % 4 else (right + 1 + index % 3) % 5


class Known:
    name = "known"
    answers_early = True

    def __init__(self, env: GlimpseVectorEnv, as_arrays: bool = False) -> None:
        self.env, self.as_arrays = env, as_arrays

    def act(self, observation: dict[str, Any], state: Any) -> tuple[dict[str, Any], Any]:
        step = state or 0
        steps = [plan(i, step) for i in self.env._index.tolist()]
        location, label = torch.tensor([place for place, _ in steps]), torch.tensor([label for _, label in steps])
        observation["location"].zero_()  # a policy may write into what it got
        if self.as_arrays:
            return {"location": location.numpy(), "label": label.numpy()}, step + 1
        logs = torch.nn.functional.one_hot(label, 5).float().log()
        return {"location": location, "label": label, "log_probabilities": logs}, step + 1


@pytest.mark.parametrize("num_envs", [1, 7, 20, 33])
@pytest.mark.parametrize("as_arrays", [False, True])
def test_every_step_is_kept_by_image_index(small_images: tuple, num_envs: int, as_arrays: bool) -> None:
    env = make(small_images, num_envs)
    evaluation = evaluate(Known(env, as_arrays), env)
    single = GlimpseEnv(dataset=small_images, **SHAPE)
    answers, places, centres = [], [], []
    for index in range(20):
        observation, _ = single.reset(options={"index": index})
        answers.append([plan(index, step)[1] for step in range(3)])
        places.append([observation["location"].tolist(), plan(index, 0)[0], plan(index, 1)[0]])
        centres.append(single.digit_location.tolist())
    assert evaluation.answers.tolist() == answers
    assert evaluation.predictions.tolist() == [row[-1] for row in answers]
    np.testing.assert_array_equal(evaluation.locations, np.array(places, np.float32))
    np.testing.assert_array_equal(evaluation.digit_locations, np.array(centres, np.float32))
    assert evaluation.seconds > 0
    assert evaluation.scenes_per_second == 20 / evaluation.seconds


def known(small_images: tuple, **options: Any) -> Evaluation:
    env = make(small_images)
    return evaluate(Known(env), env, task="t", **options)


def test_derived_numbers_against_loops(small_images: tuple) -> None:
    evaluation = known(small_images)
    labels, predictions = evaluation.labels.tolist(), evaluation.predictions.tolist()
    confusion = np.zeros((5, 5), int)
    for label, prediction in zip(labels, predictions, strict=True):
        confusion[label, prediction] += 1
    assert evaluation.confusion.tolist() == confusion.tolist()
    for label in range(5):
        wrong = [p != label for y, p in zip(labels, predictions, strict=True) if y == label]
        assert evaluation.class_error_percent[label] == pytest.approx(100 * sum(wrong) / len(wrong))
    distances = np.zeros(3)
    for places, (x, y) in zip(evaluation.locations.tolist(), evaluation.digit_locations.tolist(), strict=True):
        for glimpse, (px, py) in enumerate(places):
            distances[glimpse] += np.hypot((px - x) * 6, (py - y) * 6) / 20  # 12 pixels are 2 units wide
    np.testing.assert_allclose(evaluation.distance_by_glimpse_pixels, distances, rtol=1e-6)
    pixels = [[(x * 6, y * 6) for x, y in places] for places in evaluation.locations.tolist()]
    for glimpse, spread in enumerate(evaluation.spread_by_glimpse_pixels):
        xs, ys = zip(*(places[glimpse] for places in pixels), strict=True)
        assert spread == pytest.approx((statistics.pvariance(xs) + statistics.pvariance(ys)) ** 0.5, rel=1e-6)
    # A quarter of the scenes is right from the first answer on, another from the second, another from the third.
    assert evaluation.accuracy_by_glimpse_percent == [25, 50, 75]
    assert evaluation.accuracy_percent == 75 == 100 - evaluation.error_percent
    low, high = evaluation.interval_percent
    np.testing.assert_allclose(evaluation.accuracy_interval_percent, (100 - high, 100 - low))
    assert json.loads(json.dumps(evaluation.to_dict()))["accuracy_by_glimpse_percent"] == [25, 50, 75]


def test_without_early_answers_nothing_is_said_of_them(small_images: tuple) -> None:
    env = make(small_images)
    policy = Known(env)
    policy.answers_early = False  # type: ignore[misc]
    evaluation = evaluate(policy, env)
    assert evaluation.accuracy_by_glimpse_percent is None
    assert evaluation.to_dict()["accuracy_by_glimpse_percent"] is None


def test_the_old_name_of_the_environment_config_warns(small_images: tuple) -> None:
    evaluation = known(small_images)
    with pytest.warns(DeprecationWarning, match="use env_config"):
        assert evaluation.setting is evaluation.env_config
    fields = {field.name: getattr(evaluation, field.name) for field in dataclasses.fields(evaluation)}
    config = fields.pop("env_config")
    with pytest.warns(DeprecationWarning, match="use env_config"):
        again = Evaluation(**fields, setting=config)
    assert again.env_config is config
    assert again.to_dict() == evaluation.to_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Evaluation(**fields, env_config=config).env_config is config


def test_a_class_without_scenes_has_no_error(small_images: tuple) -> None:
    assert known(small_images, episodes=3).class_error_percent[3:] == [None, None]


def test_average_10_describes_its_first_rollout(small_images: tuple) -> None:
    averaged, single = known(small_images, protocol="average-10"), known(small_images)
    for name in ("answers", "locations", "digit_locations", "labels"):
        assert torch.equal(getattr(averaged, name), getattr(single, name))
    keys = scenes.scene_keys(torch.arange(20), torch.full((20,), 2014), "test")
    assert torch.equal(averaged.locations[:, 0], scenes.first_locations(keys, 0))


class Doubtful:
    """Gives other probabilities in each rollout; `table` has those of rollout, scene and label."""

    name = "doubtful"

    def __init__(self, table: np.ndarray) -> None:
        self.table, self.rollouts = torch.from_numpy(table), 0

    def act(self, observation: dict[str, Any], state: Any) -> tuple[dict[str, Any], int]:
        self.rollouts += state is None
        logs = self.table[self.rollouts - 1].log().float()
        return {"location": observation["location"], "label": logs.argmax(-1), "log_probabilities": logs}, 1


def test_average_10_answers_with_the_largest_mean_of_logarithms(small_images: tuple) -> None:
    table = np.random.default_rng(0).dirichlet(np.full(5, 0.3), (10, 20))
    evaluation = evaluate(Doubtful(table), make(small_images, 20), protocol="average-10")
    expected = np.log(table).mean(0).argmax(-1)
    assert evaluation.predictions.tolist() == expected.tolist()
    assert evaluation.errors == (expected != np.asarray(small_images[1])).sum()
    for other in (table.mean(0), table.max(0), table[0], table[-1]):
        assert (other.argmax(-1) != expected).any(), "the table would not tell"


class Odd:
    name = "odd"

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def act(self, observation: dict[str, Any], state: Any) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


GOOD = {"location": torch.zeros(7, 2), "label": torch.zeros(7, dtype=torch.int64)}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (GOOD, r"policy 'odd': act must return \(action, state\), got dict"),
        ((1, 2, 3), r"policy 'odd': act must return \(action, state\), got tuple"),
        ((torch.zeros(7, 2), None), "policy 'odd': the action must be a dict with location and label, got Tensor"),
        (({**GOOD, "location": torch.zeros(3, 2)}, 0), r"policy 'odd': .*location.* \(7, 2\), .* got shape \(3, 2\)"),
        (({**GOOD, "label": torch.zeros(7)}, 0), "policy 'odd': .*label.*integers"),
        (({**GOOD, "label": torch.full((7,), 5)}, 0), r"policy 'odd': .*label.*\[0, 5\)"),
        (({**GOOD, "location": np.full((7, 2), np.inf)}, 0), "policy 'odd': .*location.*finite"),
        (({**GOOD, "where": 1}, 0), "policy 'odd': .*unknown where"),
    ],
)
def test_bad_actions_name_the_policy(small_images: tuple, answer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(Odd(answer), make(small_images))


@pytest.mark.parametrize(
    ("logs", "message"),
    [
        (torch.full((7, 5), torch.nan), "policy 'odd': .*NaN"),
        (torch.full((7, 5), torch.inf), "policy 'odd': .*infinite"),
        (None, r"policy 'odd': log_probabilities must be numbers \(7, 5\), got None"),
        (torch.zeros(7, 9), r"policy 'odd': log_probabilities must be numbers \(7, 5\), got shape \(7, 9\)"),
    ],
)
def test_bad_log_probabilities_name_the_policy(small_images: tuple, logs: Any, message: str) -> None:
    env = make(small_images)
    with pytest.raises(ValueError, match=message):
        evaluate(Odd(({**GOOD, "log_probabilities": logs}, 0)), env, protocol="average-10")
    assert evaluate(Known(env), env).accuracy_percent == 75, "the environment is as good as new"


def test_labels_may_be_integers_of_any_kind(small_images: tuple) -> None:
    for kind in (np.uint8, np.int32, np.uint64):
        evaluation = evaluate(Odd(({**GOOD, "label": np.full(7, 3, kind)}, 0)), make(small_images))
        assert (evaluation.predictions == 3).all()


def test_an_error_of_the_policys_own_says_whose_it_is(small_images: tuple) -> None:
    with pytest.raises(RuntimeError, match="cannot be multiplied") as raised:
        evaluate(Odd(RuntimeError("shapes cannot be multiplied")), make(small_images))
    assert "raised by policy 'odd'" in raised.value.__notes__


def test_what_was_seen_of_the_same_scenes_may_differ(small_images: tuple) -> None:
    def played(**fields: Any) -> Evaluation:
        env = make(small_images, **fields)
        return evaluate(Known(env), env)

    ours = played()
    theirs = played(patch_size=3, num_scales=2, num_glimpses=5)
    assert compare(ours, theirs).episodes == 20
    with pytest.raises(ValueError, match="same scenes, got canvas_size=12 and canvas_size=13"):
        compare(ours, played(canvas_size=13))
    with pytest.raises(ValueError, match=r"must be of one number of glimpses, got 3 .* and 5"):
        ComparisonTable([ours, dataclasses.replace(theirs, policy="other")])


def test_what_is_no_environment_is_refused(small_images: tuple) -> None:
    env = make(small_images)
    for wrong in (GlimpseEnv(dataset=small_images, patch_size=4), wrappers.VectorMultiDiscreteAction(env)):
        with pytest.raises(ValueError, match="env must be a GlimpseVectorEnv, without wrappers, got <"):
            evaluate(Known(env), wrong)
    for episodes in (1.5, True, "a", 0, 21):
        with pytest.raises(ValueError, match=f"episodes must be an int in 1 to 20, .* got {episodes!r}"):
            evaluate(Known(env), env, episodes=episodes)


def test_what_is_no_policy_is_refused(small_images: tuple) -> None:
    with pytest.raises(ValueError, match="as_policy"):
        evaluate(lambda observation: observation, make(small_images))  # type: ignore[arg-type]


@pytest.mark.usefixtures("deferred")
@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="NEEDS A GPU"))],
)
@pytest.mark.parametrize("protocol", ["single", "average-10"])
def test_bad_actions_name_the_policy_on_a_gpu(small_images: tuple, protocol: Any, device: str) -> None:
    env = make(small_images, device=device)
    logs = torch.zeros(7, 5, device=device)
    for change in ({"location": torch.full((7, 2), torch.nan)}, {"label": torch.full((7,), 5)}):
        action = {key: value.to(device) for key, value in {**GOOD, **change}.items()}
        with pytest.raises(ValueError, match="policy 'odd'"):
            evaluate(Odd(({**action, "log_probabilities": logs}, 0)), env, protocol=protocol)
        for _ in range(3):  # and nobody else is blamed
            env.reset()
