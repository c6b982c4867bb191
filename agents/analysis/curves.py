"""Line plots: learning curves, error and distance after each glimpse, and errors by a property of the scenes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ram_gym.drawing import STYLE, line, short_name
from ram_gym.files import printable

from ..registry import read_config
from ..training.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LONGEST_NAME = 34


def read_curve(folder: RunFolder) -> np.ndarray:
    """Validation error during training: float64 (n, 2), training scenes and error in percent.

    Raises:
        RunError: the folder holds no run, or its config.json is damaged.
    """
    # Stable-Baselines3 counts steps; one scene has num_glimpses steps.
    steps_per_scene = read_config(folder).env_config.num_glimpses
    points = [
        (row["scenes"] if "scenes" in row else row["steps"] / steps_per_scene, row["validation_error_percent"])
        for row in folder.read_metrics()
        if "validation_error_percent" in row and ("scenes" in row or "steps" in row)
    ]
    return np.array(points, np.float64).reshape(-1, 2)


def draw_curves(curves: dict[str, np.ndarray]) -> Figure:
    """Learning curves with a dot at the best error of each, sorted by best error in the legend, largest first.

    Args:
        curves: at least one, by name, as `read_curve` returns them.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    order = sorted(curves, key=lambda name: -curves[name][:, 1].min())
    with rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(7.5, max(4.2, 0.17 * len(curves) + 0.6)), layout="constrained")
        axes = figure.subplots()
        for number, name in enumerate(order):
            scenes, errors = curves[name].T
            best = f"{errors.min():5.2f}".replace(" ", "\N{FIGURE SPACE}")  # as wide as a digit
            style = line(number)
            axes.plot(scenes, errors, label=f"{best}  {short_name(name, _LONGEST_NAME)}", **style)
            axes.plot(scenes[errors.argmin()], errors.min(), "o", color=style["color"], markersize=4)
        _show_errors_by_factors(axes)
        ends = [curve[-1, 0] for curve in curves.values()]
        if max(ends) > 20 * min(ends):
            axes.set_xscale("log")
        else:
            axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel("training scenes")
        axes.set_ylabel("validation error in %")
        axes.grid(alpha=0.25)
        figure.legend(loc="outside right upper", title="best, in %", frameon=False, fontsize=8, alignment="left")
    return figure


class Glimpses(NamedTuple):
    """Accuracy and distance of a run after each glimpse."""

    accuracies: Sequence[float] | None
    """Percent of right answers after each glimpse; None if the run answers only after the last."""
    distances: Sequence[float]
    """Mean distance of each glimpse from the digit's centre, in canvas pixels."""


def draw_glimpses(runs: dict[str, Glimpses]) -> Figure:
    """Error after each glimpse, and distance of each glimpse from the digit's centre.

    Args:
        runs: at least one, by name.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(9.5, max(3.4, 0.17 * len(runs) + 0.6)), layout="constrained")
        answers, looks = figure.subplots(1, 2)
        for number, (name, (accuracies, distances)) in enumerate(runs.items()):
            style = line(number)
            steps = range(1, len(distances) + 1)
            last = f"{distances[-1]:4.1f}".replace(" ", "\N{FIGURE SPACE}")
            looks.plot(
                steps, distances, marker="o", markersize=3, label=f"{last}  {short_name(name, _LONGEST_NAME)}", **style
            )
            if accuracies is not None:
                answers.plot(steps, [100 - accuracy for accuracy in accuracies], marker="o", markersize=3, **style)
        _show_errors_by_factors(answers)
        answers.set_ylabel("error after the glimpse in %")
        looks.set_ylabel("distance from the digit's centre in pixels")
        looks.set_ylim(bottom=0)
        for axes in (answers, looks):
            axes.set_xlabel("glimpse")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.25)
        title = "distance of the last, and run"
        figure.legend(loc="outside right upper", title=title, frameon=False, fontsize=8, alignment="left")
    return figure


class ErrorAt(NamedTuple):
    """An error in percent, its interval, and its position on the x axis."""

    position: float
    error: float
    interval: tuple[float, float]


def draw_errors(
    errors: Mapping[str, Sequence[ErrorAt]], ticks: Mapping[int, str], axis: str, title: str, joined: bool
) -> Figure:
    """Errors with intervals, by a property of the scenes.

    Args:
        errors: at least one sequence, by name.
        ticks: labels of the x axis, by position.
        axis: name of the x axis.
        title: title of the figure.
        joined: whether lines join the errors: True for a numeric property, False for groups of scenes.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(5.2, 3.6), layout="constrained")
        axes = figure.subplots()
        drawn: list[Any] = []
        for number, points in enumerate(errors.values()):
            positions, values, bounds = (np.array(part) for part in zip(*points, strict=True))
            offset = 0.0 if joined else 0.08 * (number - (len(errors) - 1) / 2)
            style = line(number) if joined else {**line(number), "linestyle": ""}
            spread = np.abs(bounds.T - values)
            drawn.append(
                axes.errorbar(positions + offset, values, spread, marker="o", markersize=4, capsize=2, **style)
            )
        _show_errors_by_factors(axes)
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.set_xlabel(axis)
        axes.set_ylabel("error in %")
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.25)
        figure.legend(drawn, list(map(printable, errors)), loc="outside lower center", frameon=False, fontsize=8)
    return figure


def _show_errors_by_factors(axes: Any) -> None:
    """Makes the error axis logarithmic; errors of 0 are below its lower end."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.set_yscale("log", nonpositive="clip")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(LogLocator(subs=range(1, 10)))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
