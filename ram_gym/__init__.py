"""ram_gym: a Gymnasium environment in which seeing costs moves.

Importing it registers the RamGym/... ids and loads neither PyTorch nor torchvision; what needs them is loaded when it
is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ram_gym.config import EVALUATION_SCENE_SEED, GlimpseConfig
from ram_gym.registration import register_task, register_tasks
from ram_gym.tasks import TASKS, Task, get_task

if TYPE_CHECKING:
    from ram_gym.adapters.policies import as_policy
    from ram_gym.datasets import Dataset, DatasetError, has_dataset, load_dataset
    from ram_gym.env import GlimpseEnv
    from ram_gym.evaluation import Comparison, Evaluation, Policy, compare, evaluate
    from ram_gym.rendering import render_frame, save_gif
    from ram_gym.report import write_report
    from ram_gym.retina import take_glimpses
    from ram_gym.tables import ComparisonTable, evaluate_all
    from ram_gym.vector_env import GlimpseVectorEnv

__version__ = "0.1.0"

_LAZY = {
    "Dataset": "datasets",
    "DatasetError": "datasets",
    "has_dataset": "datasets",
    "load_dataset": "datasets",
    "GlimpseEnv": "env",
    "GlimpseVectorEnv": "vector_env",
    "Comparison": "evaluation",
    "ComparisonTable": "tables",
    "Evaluation": "evaluation",
    "Policy": "evaluation",
    "as_policy": "adapters.policies",
    "compare": "evaluation",
    "evaluate": "evaluation",
    "evaluate_all": "tables",
    "render_frame": "rendering",
    "save_gif": "rendering",
    "take_glimpses": "retina",
    "write_report": "report",
}

__all__ = [
    "EVALUATION_SCENE_SEED",
    "TASKS",
    "Comparison",
    "ComparisonTable",
    "Dataset",
    "DatasetError",
    "Evaluation",
    "GlimpseConfig",
    "GlimpseEnv",
    "GlimpseVectorEnv",
    "Policy",
    "Task",
    "as_policy",
    "compare",
    "evaluate",
    "evaluate_all",
    "get_task",
    "has_dataset",
    "load_dataset",
    "register_task",
    "render_frame",
    "save_gif",
    "take_glimpses",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'ram_gym' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"ram_gym.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_tasks()
