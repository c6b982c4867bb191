"""Both environments take the end of an episode and its reward from ram_gym.rules alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ram_gym import GlimpseConfig, GlimpseEnv, GlimpseVectorEnv, rules

SHAPE: dict[str, Any] = {"canvas_size": 12, "num_glimpses": 4, "patch_size": 4}


def test_the_last_step_answers_and_pays_1_for_the_right_label() -> None:
    config = GlimpseConfig(num_glimpses=3)
    assert [rules.is_answer(step, config) for step in (1, 2, 3)] == [False, False, True]
    assert rules.is_answer(np.array([3, 1, 3]), config).tolist() == [True, False, True]
    assert (rules.reward(True), rules.reward(False)) == (1.0, 0.0)
    paid = rules.reward(torch.tensor([True, False]))
    assert (paid.tolist(), paid.dtype) == ([1.0, 0.0], torch.float32)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_another_rule_holds_in_both_environments(
    small_images: tuple, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "is_answer", lambda step, config: step == 2)
    monkeypatch.setattr(rules, "reward", lambda is_success: is_success * 0.5 - 0.125)
    single = GlimpseEnv(dataset=small_images, **SHAPE)
    vector = GlimpseVectorEnv(2, dataset=small_images, autoreset_mode=mode, **SHAPE)
    single.reset(seed=0, options={"index": 3})
    vector.reset(seed=0, options={"index": 3})
    for step in (1, 2):
        one = single.step({"location": (0, 0), "label": 3})
        many = vector.step({"location": [(0, 0)] * 2, "label": [3, 4]})
        assert (one[1], one[2]) == ((-0.125, False) if step == 1 else (0.375, True))
        assert many[1].tolist() == ([-0.125, -0.125] if step == 1 else [0.375, -0.125])
        assert many[2].tolist() == [step == 2] * 2
