"""`python -m agents figures`: learning curves, glimpses, paths and mistakes of runs, as PNG files."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import torch
import tyro
from torch import Tensor

from ram_gym import Evaluation, GlimpseConfig, Policy, load_dataset
from ram_gym.coordinates import location_to_pixel
from ram_gym.drawing import GREY, RIGHT, STYLE, WRONG, as_rgb, class_name, path_and_corners, short_name
from ram_gym.files import write_file

from ..registry import load_run
from ..terminal import say
from ..training.environment import describe_environment, make_env
from ..training.pretrained import find_run
from ..training.run_folder import RunFolder
from .compare import Split, evaluate_with_progress
from .curves import Glimpses, draw_curves, draw_glimpses, read_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS, MAX_SCENES = 4, 24
WEIGHTS = ("best.safetensors", "best_model.zip")
_BRIGHTNESS = 0.6  # of canvases, so that white lines show on white digits


def draw_figures(
    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN")],
    out: Path,
    split: Split = "validation",
    data_root: str | None = None,
    device: str = "cpu",
    other_data: bool = False,
) -> None:
    """Draw learning curves of runs and, if they have weights, their glimpse paths and their mistakes.

    Writes learning-curves.png (validation error against training scenes, from metrics.jsonl), glimpses.png (error and
    distance from the digit after each glimpse), NAME-paths.png (the first scenes of the split with the glimpse
    paths) and NAME-mistakes.png (wrong answers, the most confident first). Scenes are fixed, so the same run gives
    the same figures.

    Args:
        runs: Run folders or pretrained:NAME. A run without weights appears in the first two figures only, in the
            second with its stored results of `evaluate` on the split.
        out: Folder to write to.
        split: Split of the scenes to show: the test split, or the validation split, on which checkpoints were chosen.
        data_root: Folder with the datasets; default: the one that the runs were trained with.
        device: PyTorch device, "cpu" or "cuda".
        other_data: Allow an environment or images other than those that a run learned from; its figures say so.
    """
    folders = name_runs([find_run(name) for name in runs])
    curves = {name: curve for name, folder in folders.items() if len(curve := read_curve(folder))}
    for name in [name for name in folders if name not in curves]:
        say(f"{name}: no metrics.jsonl with validation errors, so no learning curve")
    if curves:
        _save(draw_curves(curves), out / "learning-curves.png", num_colours=None)
    glimpses: dict[str, Glimpses] = {}
    for name, folder in folders.items():
        if not any((folder.path / file).is_file() for file in WEIGHTS):
            say(f"{name}: no weights, so its paths and mistakes are not drawn")
            stored = folder.read_results().get(f"{split} single", {})
            if "distance_by_glimpse_pixels" in stored:
                glimpses[name] = Glimpses(stored["accuracy_by_glimpse_percent"], stored["distance_by_glimpse_pixels"])
            continue
        played = play(folder, name, split, data_root, device, other_data)
        if played.looks:
            evaluation = played.evaluation
            if (distances := evaluation.distance_by_glimpse_pixels) is not None:
                glimpses[name] = Glimpses(evaluation.accuracy_by_glimpse_percent, distances)
            index = torch.arange(min(MAX_SCENES, played.evaluation.episodes))
            title = f"{name}: scenes {index[0]} to {index[-1]}"
            _save(draw_scenes(played, index, title), out / f"{name}-paths.png")
        else:
            say(f"{name}: sees the whole canvas, so there are no paths to draw")
        wrong = mistakes(played)
        if not len(wrong):
            say(f"{name}: no mistakes to draw")
            continue
        count = f"{min(MAX_SCENES, len(wrong))} of {len(wrong):,} mistakes, the most confident first"
        _save(draw_scenes(played, wrong[:MAX_SCENES], f"{name}: {count}"), out / f"{name}-mistakes.png")
    if glimpses:
        _save(draw_glimpses(glimpses), out / "glimpses.png", num_colours=None)


def name_runs(folders: Sequence[RunFolder]) -> dict[str, RunFolder]:
    """Runs by short names for files: the folder's name, with parent folders where two would be the same.

    Folder names that all paths end with, such as seed-0, are left out.

    Raises:
        ValueError: no run is given, or one is given twice.
        RunError: a folder holds no run.
    """
    for folder in folders:
        folder.read_about()
    paths = [folder.path.resolve() for folder in folders]
    if not paths:
        raise ValueError("runs must name run folders or pretrained:NAME, got none")
    if len(set(paths)) < len(paths):
        raise ValueError(f"runs must be given once, got {', '.join(str(folder.path) for folder in folders)}")
    parts = [path.parts[1:] for path in paths]
    while len(parts) > 1 and len({path[-1] for path in parts}) == 1:
        parts = [path[:-1] for path in parts]
    depth, names = 1, [path[-1] for path in parts]
    while len(set(names)) < len(paths) or any(re.fullmatch(r"seed-\d+", name) for name in names):
        depth += 1
        names = ["-".join(path[-depth:]) for path in parts]
    return dict(zip(names, folders, strict=True))


class Played(NamedTuple):
    """A run's episodes on a split."""

    evaluation: Evaluation
    probabilities: Tensor
    """float32 (episodes, L): probability of each label after the last glimpse."""
    looks: bool
    """Whether the run takes glimpses; otherwise it sees the whole canvas."""
    device: str
    is_other_data: bool = False
    """Whether the run learned from other data."""


class _Recorder:
    """A policy that stores its label probabilities at the last step of each batch."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.name = policy, policy.name
        self.answers_early = bool(getattr(policy, "answers_early", False))
        self.batches: list[Tensor] = []

    def act(self, observation: dict[str, Any], state: Any) -> tuple[dict[str, Any], Any]:
        # A tuple holds the policy's state, which may be None; here None means the beginning of a batch.
        if state is None:
            self.batches.append(torch.empty(0))
        action, memory = self.policy.act(observation, None if state is None else state[0])
        self.batches[-1] = action["log_probabilities"].exp()
        return action, (memory,)


def play(
    folder: RunFolder,
    name: str,
    split: Split,
    data_root: str | None = None,
    device: str = "cpu",
    other_data: bool = False,
) -> Played:
    """Plays a split's fixed scenes once, as `python -m agents evaluate` does.

    Args:
        folder: the run, with weights.
        name: the policy's name.
        split: the split of the scenes.
        data_root: folder with the datasets; None: the run's own.
        device: PyTorch device.
        other_data: whether environment and images may differ from those that the run learned from.

    Raises:
        RunError: the run is damaged.
        ValueError: the dataset is missing or not the one that the run learned from, or the device cannot be used.
        ImportError: it is a Stable-Baselines3 run, and Stable-Baselines3 is not installed.
    """
    run = load_run(folder, device, data_root)
    env_config = run.config.env_config.replace(split=split)
    is_other = run.is_other_data(env_config, other_data)
    env = make_env(env_config, device)
    recorder = _Recorder(run.make_policy(env, None, name))
    evaluation = evaluate_with_progress(recorder, env, run.config.task, "single")
    probabilities = torch.cat([batch.cpu() for batch in recorder.batches])[: evaluation.episodes]
    return Played(evaluation, probabilities, run.looks, device, is_other)


def mistakes(played: Played) -> Tensor:
    """Indices of the scenes with a wrong answer, the most confident first: int64 (errors,)."""
    wrong = (~played.evaluation.is_right).nonzero().squeeze(1)
    return wrong[_confidence(played)[wrong].argsort(descending=True, stable=True)]


def draw_scenes(played: Played, index: Tensor, title: str) -> Figure:
    """A grid of scenes: canvas, glimpse path with the squares of the finest patches, right label and answer.

    Beside each canvas is the digit, enlarged and without the path.

    Args:
        played: the run's episodes.
        index: int64 (n,), n at least 1: which scenes.
        title: title of the figure.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    evaluation, env_config = played.evaluation, played.evaluation.env_config
    env = make_env(env_config, played.device, len(index))
    env.reset(options={"index": index.to(env.device)})
    canvases = env.canvases.cpu().numpy()  # (n, C, S, S)
    height, width = load_dataset(env_config).images.shape[2:]
    centres = location_to_pixel(env.digit_locations.cpu().numpy(), env_config.canvas_size)  # (n, 2)
    corners = (centres - (width / 2, height / 2)).round().astype(int)
    confidence = _confidence(played)
    rows = -(-len(index) // COLUMNS)
    task = describe_environment(evaluation.task, env_config)
    task += ", other data than it learned from" * played.is_other_data
    subtitle = f"{task}, {evaluation.split} split, error {evaluation.error_percent:.2f}%"
    with rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(12, 1.73 * rows + 0.5), layout="constrained")
        figure.suptitle(f"{short_name(title, 100)}\n{subtitle}; right label → answer (its probability)", fontsize=10)
        grid = figure.subplots(rows, 2 * COLUMNS, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        cells = zip(grid.reshape(-1, 2), canvases, corners, index.tolist(), strict=False)
        for (axes, digit_axes), canvas, (left, top), scene in cells:
            digit_axes.imshow(as_rgb(canvas[:, top : top + height, left : left + width]) / 255, interpolation="nearest")
            label, answer = int(evaluation.labels[scene]), int(evaluation.predictions[scene])
            path = evaluation.locations[scene].numpy() if played.looks else np.empty((0, 2), np.float32)
            _draw_scene(axes, canvas, path, env_config)
            colour = RIGHT if label == answer else WRONG
            names = [class_name(number, evaluation.class_names, 12) for number in (label, answer)]
            axes.set_title(f"{' → '.join(names)} ({confidence[scene]:.2f})", color=colour, fontsize=9, pad=3)
            axes.text(0, -0.01, f"scene {scene}", transform=axes.transAxes, va="top", fontsize=6, color=GREY)
    return figure


def _draw_scene(axes: Any, canvas: np.ndarray, path: np.ndarray, env_config: GlimpseConfig) -> None:
    """One canvas, uint8 (C, S, S), with a path, float32 (T, 2); points and squares run from yellow to purple."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    size, side = env_config.canvas_size, env_config.patch_size
    axes.imshow(as_rgb(canvas) * _BRIGHTNESS / 255, extent=(0, size, size, 0), interpolation="nearest")
    points, corners = path_and_corners(path, env_config)  # (T, 2)
    colours = colormaps["plasma"](np.linspace(0.95, 0.35, len(path)))
    axes.plot(*points.T, color="white", linewidth=0.8, alpha=0.8, clip_on=False)
    for number, (point, corner, colour) in enumerate(zip(points, corners, colours, strict=True)):
        axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=colour, linewidth=0.8, alpha=0.9))
        order = 3 + number / len(path)
        axes.plot(*point, "o", color=colour, markersize=7, markeredgewidth=0, clip_on=False, zorder=order)
        ink = "black" if number < len(path) / 2 else "white"
        text = {"ha": "center", "va": "center_baseline", "fontsize": 5.5, "color": ink, "zorder": order}
        axes.text(*point, str(number + 1), **text)
    axes.set_xlim(0, size)
    axes.set_ylim(size, 0)


def _confidence(played: Played) -> Tensor:
    """Probability of the chosen answer: float32 (episodes,)."""
    return played.probabilities.gather(1, played.evaluation.predictions[:, None]).squeeze(1)


def _save(figure: Figure, path: Path, num_colours: int | None = 96) -> None:
    """Writes a PNG file. 96 colours halve the size of pictures without visible change; line plots need all colours."""
    from PIL import Image

    file = io.BytesIO()
    figure.savefig(file, dpi=120)
    with Image.open(file) as image:
        drawn = image.convert("RGB")
        if num_colours is not None:
            drawn = drawn.quantize(num_colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        smaller = io.BytesIO()
        drawn.save(smaller, "PNG", optimize=True)
    write_file(path, smaller.getvalue())
    say(str(path))
