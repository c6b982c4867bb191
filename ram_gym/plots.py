"""Plots of evaluations, as SVG for an HTML page. Needs `pip install 'ram_gym[report]'`.

Axes and text take the colour of the page's text, so a plot is legible on light and dark pages. Policies differ in
marker and line style as well as in colour.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import PowerNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ram_gym import drawing
from ram_gym.coordinates import location_to_pixel
from ram_gym.evaluation import Evaluation
from ram_gym.statistics import wilson_percent

_INK = "#010203"  # replaced by the page's own text colour
_STYLE = {
    **drawing.STYLE,
    "svg.fonttype": "none",
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "grid.color": _INK,
    "grid.alpha": 0.15,
}
_LONGEST_NAME = 44
_MAX_CELLS = 30
"""Largest number of squares along each axis of the canvas, to count locations in."""
_MAX_WRITTEN_CLASSES = 12
"""Confusion matrices of more classes have no numbers in their cells."""

MAX_CLASSES = 50
"""Of more classes than this only those most often confused are drawn."""

_NUMBERS = itertools.count()

Named = Sequence[tuple[str, Evaluation]]
"""Pairs of a policy's name in the plot and its evaluation."""


def plot_accuracy(evaluations: Named) -> str:
    """Accuracy after each glimpse, with Wilson intervals; one mark at the end for policies that answer only then."""
    with _figure() as (_, axes, finish):
        for number, (name, evaluation) in enumerate(evaluations):
            counts = evaluation.right_by_glimpse
            last = evaluation.env_config.num_glimpses
            if counts is None:
                glimpses, counts = [last], [evaluation.episodes - evaluation.errors]
            else:
                glimpses = list(range(1, last + 1))
            values = np.array(counts) * 100 / evaluation.episodes
            bounds = np.array([wilson_percent(count, evaluation.episodes) for count in counts]).T
            spread = np.abs(bounds - values)
            axes.errorbar(glimpses, values, spread, label=_short(name), capsize=2, **drawing.line(number, marked=True))
        axes.set_ylabel("accuracy in %")
        axes.set_xlim(0.7, last + 0.3)  # all glimpses, even if every policy has one mark only, at the last
        _by_glimpse(axes)
        _legend(axes)
        return finish()


def plot_distance(evaluations: Named) -> str:
    """Mean distance of each glimpse from the image's centre."""
    with _figure() as (_, axes, finish):
        for number, (name, evaluation) in enumerate(evaluations):
            values = evaluation.distance_by_glimpse_pixels or []
            axes.plot(range(1, len(values) + 1), values, label=_short(name), **drawing.line(number, marked=True))
        axes.set_ylabel("distance in canvas pixels")
        axes.set_ylim(bottom=0)
        _by_glimpse(axes)
        _legend(axes)
        return finish()


def plot_class_error(evaluations: Named) -> str:
    """Error on the scenes of each class, or of the MAX_CLASSES that are most often confused."""
    classes = most_confused([evaluation for _, evaluation in evaluations])
    with _figure() as (_, axes, finish):
        for number, (name, evaluation) in enumerate(evaluations):
            errors = np.array(evaluation.class_error_percent, float)[classes]  # NaN for None
            shift = (number - (len(evaluations) - 1) / 2) * 0.6 / len(evaluations)
            style = {**drawing.line(number, marked=True), "linestyle": "none"}
            axes.plot(np.arange(len(errors)) + shift, errors, label=_short(name), **style)
        axes.set_xlabel("class")
        axes.set_ylabel("error in %")
        axes.set_ylim(bottom=0)
        _by_class(axes.xaxis, classes, evaluation, 20 if len(classes) == evaluation.num_classes else 10)
        axes.grid(axis="y")
        _legend(axes)
        return finish()


def plot_density(evaluation: Evaluation) -> str:
    """Where on the canvas a policy looked, without the first glimpse, whose location the environment chose."""
    size, shares = evaluation.env_config.canvas_size, looks_percent(evaluation)
    with _figure(3.1, 2.6) as (figure, axes, finish):
        extent = (0, size, size, 0)
        image = axes.imshow(shares, extent=extent, norm=PowerNorm(0.5, 0, shares.max()), interpolation="nearest")
        bar = figure.colorbar(image, ax=axes, label="% of looks")
        bar.outline.set_visible(False)
        axes.set_xlabel("x in pixels")
        axes.set_ylabel("y in pixels")
        return finish()


def looks_percent(evaluation: Evaluation) -> np.ndarray:
    """Share of the glimpses in each square of the canvas, in percent: float64 (rows, columns).

    The first glimpse, whose location the environment chose, counts only if it is the only one.
    """
    size, cells = evaluation.env_config.canvas_size, _num_cells(evaluation)
    chosen = evaluation.locations[:, 1:] if evaluation.locations.shape[1] > 1 else evaluation.locations
    x, y = location_to_pixel(chosen.reshape(-1, 2).numpy(), size).T
    counts, _, _ = np.histogram2d(y, x, bins=cells, range=((0, size), (0, size)))
    return 100 * counts / counts.sum()


def cell_side(evaluation: Evaluation) -> float:
    """Side in canvas pixels of the squares that `plot_density` counts in."""
    return evaluation.env_config.canvas_size / _num_cells(evaluation)


def _num_cells(evaluation: Evaluation) -> int:
    return min(evaluation.env_config.canvas_size, _MAX_CELLS)


def plot_confusion(evaluation: Evaluation) -> str:
    """Number of scenes of each class that got each answer; wrong answers shaded by their share of the class.

    Of the MAX_CLASSES that are most often confused, where there are more.
    """
    classes = most_confused([evaluation])
    confusion, num = confusion_among(evaluation, classes), len(classes)
    totals = evaluation.labels.bincount(minlength=evaluation.num_classes).numpy()[classes, None]
    wrong = confusion * (1 - np.eye(num, dtype=np.int64)) / np.maximum(totals, 1)
    shade = np.zeros((num, num, 4), np.uint8)
    shade[..., :3] = np.rint(255 * np.array(to_rgb(drawing.COLOURS[1])))
    shade[..., 3] = np.rint(220 * np.sqrt(wrong / max(wrong.max(), 1e-9)))
    with _figure(4.2, 3.9) as (_, axes, finish):
        axes.imshow(shade, interpolation="nearest")
        if num <= _MAX_WRITTEN_CLASSES:
            for (row, column), count in np.ndenumerate(confusion):
                if count:
                    weight = "bold" if row == column else "normal"
                    axes.text(column, row, str(count), ha="center", va="center", fontsize=7, weight=weight)
        for axis in (axes.xaxis, axes.yaxis):
            _by_class(axis, classes, evaluation, _MAX_WRITTEN_CLASSES)
        axes.set_xlabel("answer")
        axes.set_ylabel("right label")
        return finish()


def most_confused(evaluations: Sequence[Evaluation], number: int = MAX_CLASSES) -> np.ndarray:
    """The classes that most wrong answers are about, as right label or as answer: int64 (number,), rising.

    All classes where there are not more.
    """
    counts = np.zeros(evaluations[0].num_classes, np.int64)
    for evaluation in evaluations:
        for labels in (evaluation.labels, evaluation.predictions):
            counts += labels[~evaluation.is_right].bincount(minlength=len(counts)).numpy()
    return np.sort(np.argsort(-counts, kind="stable")[:number])


def confusion_among(evaluation: Evaluation, classes: np.ndarray) -> np.ndarray:
    """How many scenes of each of some classes (row) got each of them as answer (column): int64 (num, num)."""
    place = np.full(evaluation.num_classes, -1)
    place[classes] = np.arange(len(classes))
    rows, columns = place[evaluation.labels.numpy()], place[evaluation.predictions.numpy()]
    are_in = (rows >= 0) & (columns >= 0)
    cells = np.bincount(rows[are_in] * len(classes) + columns[are_in], minlength=len(classes) ** 2)
    return cells.reshape(len(classes), len(classes))


@contextmanager
def _figure(width: float = 4.8, height: float = 3.0) -> Iterator[tuple[Figure, Any, Callable[[], str]]]:
    """A figure with one pair of axes, and the function that returns it as SVG."""
    with rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(width, height))
        yield figure, figure.add_subplot(), lambda: _svg(figure)


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # HTML needs no XML namespaces.
    text = re.sub(r'\s+xmlns(:xlink)?="[^"]*"', "", text)
    # Ids are shared by the whole page: unused ones go, and each plot gets its own prefix.
    prefix, used = f"plot{next(_NUMBERS)}-", set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", text)
    return text.replace(_INK, "currentColor")


def _by_glimpse(axes: Any) -> None:
    axes.set_xlabel("glimpses taken")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid()


def _by_class(axis: Any, classes: np.ndarray, evaluation: Evaluation, ticks: int) -> None:
    """Names of classes along an axis, at most so many; those of the horizontal axis are turned where they are words."""
    names = [drawing.class_name(int(label), evaluation.class_names) for label in classes]
    axis.set_major_locator(MaxNLocator(ticks, integer=True))
    axis.set_major_formatter(lambda place, _: names[int(place)] if 0 <= place < len(names) else "")
    if axis.axis_name == "x" and evaluation.class_names is not None:
        axis.set_tick_params(rotation=90)


def _legend(axes: Any) -> None:
    """A legend above the axes, in as many columns as fit."""
    handles, names = axes.get_legend_handles_labels()
    columns = max(1, min(3, 72 // (max(map(len, names)) + 8)))
    axes.legend(handles, names, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, borderaxespad=0.5)


def _short(name: str) -> str:
    """A name that fits, and that matplotlib does not hide for its leading underscore."""
    cut = drawing.short_name(name, _LONGEST_NAME)
    return f"\N{ZERO WIDTH SPACE}{cut}" if not cut or cut.startswith("_") else cut
