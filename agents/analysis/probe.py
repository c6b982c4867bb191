"""`python -m agents probe`: the error of trained runs against one property of the scenes, without retraining."""

from __future__ import annotations

import io
import itertools
import json as json_lines
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
import tyro
from torchvision.transforms.v2.functional import resize

from ram_gym import Evaluation, GlimpseConfig, GlimpseVectorEnv, load_dataset
from ram_gym.coordinates import location_to_pixel
from ram_gym.files import write_file

from ..registry import TrainedRun, load_run
from ..scripted import SCRIPTED_LOCATORS
from ..terminal import show_table
from ..training.environment import EVALUATION_LANES, describe_environment, make_env
from ..training.pretrained import find_run
from .compare import Split, evaluate_with_progress
from .curves import ErrorAt, draw_errors

Property = Literal["clutter", "canvas", "digit", "glimpses", "composition", "position", "overlap"]
Value = int | str

VALUES: dict[str, tuple[Value, ...]] = {
    "clutter": (0, 2, 4, 6, 8, 12, 16),
    "canvas": (60, 80, 100, 120, 140),
    "digit": (16, 20, 24, 28, 32, 36, 40),
    "glimpses": (2, 4, 6, 8, 10, 12),
    "composition": ("add", "overwrite"),
    "position": (0, 25, 50, 75),
    "overlap": (0, 1, 5, 10, 20),
}
"""Default values of each property; for the properties in `SORTING`, the lower bounds of the groups."""

SORTING = ("position", "overlap")
"""Properties that sort the scenes into groups. All other properties change the scenes."""

UNITS = {
    "clutter": "pieces of clutter",
    "canvas": "canvas side in pixels",
    "digit": "side of the digit's image in pixels",
    "glimpses": "glimpses",
    "composition": "how the digit is combined with the clutter",
    "position": "digit's distance from the centre, in % of the farthest, from",
    "overlap": "share of the digit's image that clutter changes, in %, from",
}


class Point(NamedTuple):
    """The evaluation of one policy at one value."""

    policy: str
    value: Value
    evaluation: Evaluation | None
    """None if no scene is in the group."""


def probe_runs(
    policies: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="POLICY")],
    by: Property,
    values: tuple[Value, ...] = (),
    split: Split = "test",
    data_root: str | None = None,
    device: str = "cpu",
    other_data: bool = False,
    json: bool = False,
    plot: Path | None = None,
) -> None:
    """Measure how the error of trained runs depends on one property of the scenes, without retraining.

    clutter, canvas, digit, glimpses and composition change the scenes: pieces of clutter, side of the canvas, side to
    which the digits are resized (clutter is cut from the resized digits), number of glimpses, how the digit is combined
    with the clutter. position and overlap sort the run's own scenes into groups, by the digit's distance from the
    centre and by the share of the digit's image that clutter changes.

    Args:
        policies: Run folders or pretrained:NAME, all of one task, and any of random, centre, scan, oracle. For these
            the label comes from the network of the first run that takes glimpses.
        by: The property.
        values: Its values; for position and overlap, the lower bounds of the groups, beginning with 0. Every property
            has default values.
        split: The test split, or the validation split, on which checkpoints were chosen.
        data_root: Folder with the datasets; default: the one that the runs were trained with.
        device: PyTorch device, "cpu" or "cuda".
        other_data: Allow an environment or images that differ from those that a run learned from even before the
            property changes; the result says so.
        json: Print JSON lines, one object for each policy and value, and nothing else.
        plot: File to draw the curves to, .png, .svg or .pdf.
    """
    if plot is not None and plot.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"plot must be a file name that ends in .png, .svg or .pdf, got {plot}")
    if len(set(policies)) < len(policies):
        raise ValueError(f"policies must be given once, got {', '.join(policies)}")
    runs = {name: load_run(find_run(name), device, data_root) for name in policies if name not in SCRIPTED_LOCATORS}
    if not runs:
        raise ValueError("policies must name a run folder or pretrained:NAME, got none")
    scripts = [name for name in policies if name not in runs]
    if scripts and not any(run.looks for run in runs.values()):
        raise ValueError(f"{', '.join(scripts)} need a run that takes glimpses, such as one of `train ram`: add one")
    env_config = _common_env_config(runs).replace(split=split)
    other_data_runs = [name for name, run in runs.items() if run.is_other_data(env_config, other_data)]
    values = values or VALUES[by]
    numbers = [value for value in values if isinstance(value, int)]
    if by != "composition" and (list(values) != sorted(set(numbers)) or numbers[0] < 0):
        raise ValueError(f"values must be at least 0 and rise, got {' '.join(map(str, values))}")
    if by in SORTING:
        points = _sort(policies, runs, env_config, by, numbers, device)
    else:
        points = _vary(policies, runs, env_config, by, values, device)
    if plot is not None:
        task = describe_environment(next(iter(runs.values())).config.task, env_config)
        task += f", other data than {', '.join(other_data_runs)} learned from" if other_data_runs else ""
        draw(points, by, values, f"{task}, {split} split, single protocol", plot)
    if json:
        for name, value, evaluation in points:
            results = {"episodes": 0} if evaluation is None else evaluation.to_dict()
            results |= {"other_data": True} if name in other_data_runs else {}
            print(json_lines.dumps({"by": by, "value": value, **results, "policy": name}))
    else:
        _show(points, by, values, other_data_runs)


def _vary(
    policies: Sequence[str],
    runs: dict[str, TrainedRun],
    env_config: GlimpseConfig,
    by: str,
    values: Sequence[Value],
    device: str,
) -> list[Point]:
    points = []
    # All environments first, so that a wrong value is an error before the first episode.
    envs = [(value, varied_env(env_config, by, value, device)) for value in values]
    for name in policies:
        for value, env in envs:
            evaluation = _evaluate(name, runs, env, f"{by} {value}")
            points.append(Point(name, value, evaluation))
    return points


def varied_env(env_config: GlimpseConfig, by: str, value: Value, device: str) -> GlimpseVectorEnv:
    """An environment with one property changed.

    Raises:
        ValueError: the value is not valid for the property.
    """
    if by != "digit":
        field = {"clutter": "num_clutter", "canvas": "canvas_size", "glimpses": "num_glimpses"}.get(by, by)
        return make_env(env_config.replace(**{field: value}), device)
    assert isinstance(value, int)
    if not env_config.clutter_size <= value <= env_config.canvas_size:
        low, high = env_config.clutter_size, env_config.canvas_size
        raise ValueError(f"values of digit must lie in {low} (clutter_size) to {high} (canvas_size), got {value}")
    data = load_dataset(env_config)
    resized = resize(torch.tensor(np.asarray(data.images)), [value, value], antialias=True).numpy()
    dataset, env_config = data._replace(images=resized), env_config.replace(image_size=None)
    lanes = min(len(resized), EVALUATION_LANES)
    return GlimpseVectorEnv(
        lanes, env_config, dataset=dataset, device=device, output="torch", autoreset_mode="Disabled"
    )


def _sort(
    policies: Sequence[str],
    runs: dict[str, TrainedRun],
    env_config: GlimpseConfig,
    by: str,
    values: Sequence[int],
    device: str,
) -> list[Point]:
    if values[0] != 0:
        raise ValueError(f"values of {by} must begin with 0, got {values[0]}")
    env = make_env(env_config, device)
    measure = positions(env) if by == "position" else overlaps(env)
    group = torch.bucketize(measure, torch.tensor(values[1:], dtype=measure.dtype), right=True)
    points = []
    for name in policies:
        evaluation = _evaluate(name, runs, env, by)
        for number, value in enumerate(values):
            inside = group == number
            points.append(Point(name, value, evaluation.subset(inside) if inside.any() else None))
    return points


def positions(env: GlimpseVectorEnv) -> torch.Tensor:
    """Distance of each scene's digit from the centre, in percent of the largest distance: float32 (num_images,)."""
    parts = []
    for index in _batches(env):
        env.reset(options={"index": index})
        parts.append(env.digit_locations.norm(dim=-1).cpu())
    distances = torch.cat(parts)[: env.num_images]
    return 100 * distances / distances.max().clamp(min=1e-9)


def overlaps(env: GlimpseVectorEnv) -> torch.Tensor:
    """Share of the pixels of each scene's digit image that clutter changes, in percent: float32 (num_images,)."""
    plain = make_env(env.config.replace(num_clutter=0), str(env.device), env.num_envs)
    side = load_dataset(env.config).images.shape[-1]
    shares = []
    for index in _batches(env):
        env.reset(options={"index": index})
        plain.reset(options={"index": index})
        changed = (env.canvases != plain.canvases).any(1)  # (N, S, S)
        centres = location_to_pixel(env.digit_locations, env.config.canvas_size)  # (N, 2)
        pixels = torch.arange(env.config.canvas_size, device=env.device) + 0.5
        inside = (pixels - centres[..., None]).abs() < side / 2  # (N, 2, S), of x and of y
        box = inside[:, 1, :, None] & inside[:, 0, None, :]
        shares.append((100 * (changed & box).sum((1, 2)) / side**2).cpu())
    return torch.cat(shares)[: env.num_images]


def _batches(env: GlimpseVectorEnv) -> list[torch.Tensor]:
    starts = range(0, env.num_images, env.num_envs)
    return [torch.arange(start, start + env.num_envs, device=env.device) % env.num_images for start in starts]


def _evaluate(name: str, runs: dict[str, TrainedRun], env: GlimpseVectorEnv, title: str) -> Evaluation:
    if name in runs:
        policy = runs[name].make_policy(env, None, name)
    else:
        policy = next(run for run in runs.values() if run.looks).make_policy(env, name, name)
    return evaluate_with_progress(policy, env, title, "single")


def _common_env_config(runs: dict[str, TrainedRun]) -> GlimpseConfig:
    (first, run), *other_runs = runs.items()
    env_config = run.config.env_config
    for name, other in other_runs:
        theirs = other.config.env_config
        if theirs.replace(data_root=None) != env_config.replace(data_root=None):
            raise ValueError(f"{name} was trained on other scenes than {first}: probe runs of one task together")
    return env_config


def _show(points: list[Point], by: str, values: Sequence[Value], other_data_runs: Sequence[str]) -> None:
    rows = []
    for name in dict.fromkeys(point.policy for point in points):
        own = [point.evaluation for point in points if point.policy == name]
        rows.append([name, *("no scenes" if evaluation is None else _cell(evaluation) for evaluation in own)])
    title = f"error in % (95% interval), by {UNITS[by]}"
    title += f"; other data than {', '.join(other_data_runs)} learned from" if other_data_runs else ""
    show_table(title, ["policy", *map(str, values)], rows)


def _cell(evaluation: Evaluation) -> str:
    low, high = evaluation.interval_percent
    return f"{evaluation.error_percent:.2f}\n({low:.2f} to {high:.2f})"


def draw(points: list[Point], by: str, values: Sequence[Value], title: str, path: Path) -> None:
    """Draws the errors with their intervals to a file."""
    numbers = [value for value in values if isinstance(value, int)]
    is_joined = by not in SORTING and len(numbers) == len(values)
    names = [str(value) for value in values]
    if by in SORTING:
        names = [f"{low} to {high}" for low, high in itertools.pairwise(values)] + [f"from {values[-1]}"]
    positions = numbers if is_joined else range(len(values))
    ticks = dict(zip(positions, names, strict=True))
    errors: dict[str, list[ErrorAt]] = {}
    for policy, value, evaluation in points:
        if evaluation is not None:
            name = f"{policy}, with a network not trained on it" if policy in SCRIPTED_LOCATORS else Path(policy).name
            position = positions[values.index(value)]
            errors.setdefault(name, []).append(ErrorAt(position, evaluation.error_percent, evaluation.interval_percent))
    figure = draw_errors(errors, ticks, UNITS[by].removesuffix(", from"), title, joined=is_joined)
    file = io.BytesIO()
    figure.savefig(file, format=path.suffix[1:].lower(), dpi=150)
    write_file(path, file.getvalue())
