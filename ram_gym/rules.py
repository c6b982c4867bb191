"""The rules of an episode, for the single and the vector environment: when it ends, and what it pays."""

from __future__ import annotations

from typing import Any

from ram_gym.config import GlimpseConfig


def is_answer(step: Any, config: GlimpseConfig) -> Any:
    """Whether the step of a number, 1 to T, answers and ends the episode; the others look. Ints or arrays of them."""
    return step == config.num_glimpses


def reward(is_success: Any) -> Any:
    """What a step pays: 1 where it gives the right answer, else 0. Bool -> float, or bool tensor -> float32."""
    return float(is_success) if isinstance(is_success, bool) else is_success.float()
