"""Registers every task with Gymnasium; runs when ram_gym is imported."""

from __future__ import annotations

import gymnasium as gym

from ram_gym.tasks import FREE_ENV_ID, TASKS

ENTRY_POINT = "ram_gym.env:GlimpseEnv"
VECTOR_ENTRY_POINT = "ram_gym.vector_env:GlimpseVectorEnv"


def register_tasks() -> None:
    """Registers the tasks' ids and the free one, as strings, so that nothing is imported before it is made."""
    for env_id, overrides in [(task.env_id, task.overrides) for task in TASKS.values()] + [(FREE_ENV_ID, {})]:
        gym.register(env_id, entry_point=ENTRY_POINT, vector_entry_point=VECTOR_ENTRY_POINT, kwargs=dict(overrides))
