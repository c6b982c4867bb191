"""A comparison as one self-contained HTML file: tables, plots, and episodes side by side.

Needs `pip install 'ram_gym[report]'`.
"""

from __future__ import annotations

import base64
import io
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ram_gym import drawing
from ram_gym.coordinates import location_to_pixel
from ram_gym.evaluation import Evaluation
from ram_gym.files import printable, write_file
from ram_gym.tables import ComparisonTable
from ram_gym.vector_env import GlimpseVectorEnv

MAX_SCENES = 24
"""Default number of scenes of each task in a report."""
_PACKAGES = ("gymnasium", "numpy", "torch", "scipy")


def write_report(
    path: str | os.PathLike[str],
    table: ComparisonTable,
    *,
    envs: Mapping[str, GlimpseVectorEnv] | None = None,
    command: str | None = None,
    max_scenes: int = MAX_SCENES,
) -> None:
    """Writes a comparison as one HTML file without external links or scripts.

    Args:
        path: the file, written whole or not at all; its folder is made if need be.
        table: the comparison.
        envs: environments to draw the scenes with, by task name; their running episodes end. Default: made from the
            evaluations, which works for named datasets.
        command: the command line of the comparison, shown to the reader.
        max_scenes: number of scenes of each task to show.

    Raises:
        ImportError: jinja2 or matplotlib is not installed.
        ValueError: an environment shows other scenes than were played, or a dataset of your own has no environment.
        OSError: the file cannot be written.
    """
    try:
        import jinja2

        from ram_gym import plots
    except ImportError as error:
        raise ImportError("a report needs jinja2 and matplotlib: pip install 'ram_gym[report]'") from error

    tasks = []
    for number, (task, by_policy) in enumerate(table.by_task.items()):
        first = next(iter(by_policy.values()))
        named = [(table.labels[name], evaluation) for name, evaluation in by_policy.items()]
        env = (envs or {}).get(task) or _make_env(task, first)
        results, *by_glimpse = table.sections(task)
        tasks.append(
            {
                "id": f"task-{number}",
                "name": table.task_labels[task],
                "results": results,
                "by_glimpse": by_glimpse,
                "accuracy": plots.plot_accuracy(named),
                "distance": None if first.digit_locations is None else plots.plot_distance(named),
                "cell": plots.cell_side(first),
                "class_error": plots.plot_class_error(named),
                "looks_and_mistakes": [(name, plots.plot_density(e), plots.plot_confusion(e)) for name, e in named],
                "scenes": _scenes(named, env, f"scene-{number}", max_scenes),
                "env_config": first.env_config.replace(data_root=None).to_dict(),
                "scene_seed": first.env_config.fixed_scene_seed,
                "protocol": first.protocol,
                "num_glimpses": first.env_config.num_glimpses,
                "num_classes": first.num_classes,
                "max_classes": plots.MAX_CLASSES,
                "has_numbers": first.class_names is None,
            }
        )
    loader = jinja2.PackageLoader("ram_gym", "templates")
    template = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    ).get_template("report.html.jinja")
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    text = template.render(
        tasks=tasks, command=printable(command or ""), versions=_versions(), when=when, palette=drawing
    )
    write_file(path, text)


def pick_scenes(evaluations: Sequence[Evaluation], number: int) -> list[int]:
    """Indices of the scenes to show, hardest first.

    Scenes on which all policies are wrong come first, then those on which some are, then those on which none is. If
    enough scenes divide the policies, they get at least half the places.
    """
    wrong = torch.stack([~evaluation.is_right for evaluation in evaluations]).sum(0)  # (episodes,)
    order = torch.argsort(wrong, descending=True, stable=True)
    every = order[wrong[order] == len(evaluations)].tolist()
    some = order[(wrong[order] > 0) & (wrong[order] < len(evaluations))].tolist()
    none = order[wrong[order] == 0].tolist()
    num_every = min(len(every), max(number - len(some), number - number // 2))
    picked = every[:num_every] + some[: number - num_every]
    return picked + none[: number - len(picked)]


def _make_env(task: str, evaluation: Evaluation) -> GlimpseVectorEnv:
    try:
        return GlimpseVectorEnv(min(evaluation.episodes, MAX_SCENES), evaluation.env_config)
    except ValueError as error:
        raise ValueError(f"envs must have an environment of {task!r} to draw its scenes with: {error}") from error


def _draw_canvases(env: GlimpseVectorEnv, picked: list[int], evaluation: Evaluation) -> Tensor:
    """The canvases of scenes, uint8 (len(picked), C, S, S), on the CPU."""
    ours, theirs = (config.replace(data_root=None) for config in (env.config, evaluation.env_config))
    parts = []
    for start in range(0, len(picked), env.num_envs):
        index = torch.tensor(picked[start : start + env.num_envs])
        lanes = index[torch.arange(env.num_envs) % len(index)]
        if ours != theirs or int(index.max()) >= env.num_images:
            raise ValueError(f"envs must show the scenes that were played, got {ours} instead of {theirs}")
        env.reset(options={"index": lanes})
        if not torch.equal(env.labels[: len(index)].cpu(), evaluation.labels[index]):
            raise ValueError(f"envs must show the scenes that were played on {evaluation.task!r}, got other labels")
        parts.append(env.canvases[: len(index)].cpu().clone())
    return torch.cat(parts)


def _scenes(named: list[tuple[str, Evaluation]], env: GlimpseVectorEnv, prefix: str, number: int) -> list[Any]:
    """Each scene, and each policy's episode on it, as the template takes them."""
    first = named[0][1]
    picked = pick_scenes([evaluation for _, evaluation in named], number)
    if not picked:
        return []
    shown = []
    for index, canvas in zip(picked, _draw_canvases(env, picked, first), strict=True):
        place = None if first.digit_locations is None else first.digit_locations[index]
        episodes = [_episode(name, evaluation, index) for name, evaluation in named]
        shown.append(
            {
                "id": f"{prefix}-{index}",
                "index": index,
                "size": first.env_config.canvas_size,
                "picture": _data_url(canvas.numpy()),
                "label": drawing.class_name(int(first.labels[index]), first.class_names),
                "centre": None if place is None else location_to_pixel(place, first.env_config.canvas_size).tolist(),
                "num_wrong": sum(not episode["is_right"] for episode in episodes),
                "episodes": episodes,
            }
        )
    return shown


def _episode(name: str, evaluation: Evaluation, index: int) -> dict[str, Any]:
    env_config = evaluation.env_config
    names = evaluation.class_names
    answers = [drawing.class_name(label, names) for label in evaluation.answers[index].tolist()]
    boxes = []
    for scale in range(env_config.num_scales):
        points, corners = drawing.path_and_corners(evaluation.locations[index], env_config, scale)
        boxes.append((env_config.patch_side(scale), corners.tolist()))
    return {
        "name": name,
        "points": [(round(x, 2), round(y, 2)) for x, y in points.tolist()],
        "fine": boxes[0],
        "coarse": [(side, places[-1]) for side, places in boxes[1:]],
        "prediction": drawing.class_name(int(evaluation.predictions[index]), evaluation.class_names),
        "is_right": bool(evaluation.is_right[index]),
        "answers": answers if evaluation.answers_early else None,
    }


def _data_url(canvas: np.ndarray) -> str:
    """A canvas, uint8 (C, S, S), C 1 or 3, as the data URL of a PNG."""
    pixels = canvas[0] if len(canvas) == 1 else drawing.as_rgb(canvas)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _versions() -> dict[str, str]:
    from ram_gym import __version__

    versions = {"ram_gym": __version__, "python": platform.python_version()}
    return versions | {package: metadata.version(package) for package in _PACKAGES}
