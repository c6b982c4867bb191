"""Plots of how cost grows, drawn with matplotlib where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.cases import place

LABELS = {
    "batch": "lanes",
    "canvas_size": "canvas side, pixels",
    "num_clutter": "pieces of clutter",
    "num_scales": "scales",
}
COLOURS = {
    "stepping.vector": ("tab:blue", "lane-step of the vector environment, resets included"),
    "stepping.sensor": ("tab:orange", "glimpse, sensor alone"),
    "stepping.scenes": ("tab:green", "scene, made alone"),
}
STYLES = ("-", "--", ":", "-.")


def plot_growth(result: dict[str, Any], folder: Path) -> list[Path]:
    """Draws FOLDER/growth-SWEEP.png for each sweep of the growth benchmark; the band is minimum to maximum.

    Returns:
        The files; none, and a line that says so, without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        Console(stderr=True).print("no plots: matplotlib is not installed (pip install -e '.[bench]')", markup=False)
        return []
    rows = [row for row in result["rows"] if "rate" in row]
    spots = list(dict.fromkeys((row["device"], row["threads"]) for row in rows))
    files = []
    for sweep in dict.fromkeys(row["sweep"] for row in rows):
        figure = Figure(figsize=(7.5, 4.5), layout="constrained")
        axes = figure.add_subplot()
        for measure, (colour, label) in COLOURS.items():
            for spot, style in zip(spots, STYLES, strict=False):
                line = [
                    row
                    for row in rows
                    if (row["sweep"], row["measure"], row["device"], row["threads"]) == (sweep, measure, *spot)
                ]
                if not line:
                    continue
                values = [row["value"] for row in line]
                low, middle, high = (
                    [1e9 / row["rate"][kind] for row in line] for kind in ("max", "median", "min")
                )  # nanoseconds
                axes.plot(
                    values, middle, style, marker="o", markersize=3, color=colour, label=f"{label}, {place(line[0])}"
                )
                axes.fill_between(values, low, high, color=colour, alpha=0.2, linewidth=0)
        _scale_axes(axes, sweep, sorted({row["value"] for row in rows if row["sweep"] == sweep}))
        if sweep == "batch":
            _mark_caches(axes, result)
        first = next(row for row in rows if row["sweep"] == sweep)
        lanes = "" if sweep == "batch" else f", {first['batch']:,} lanes"
        axes.set_title(f"{first['task']}{lanes}: {result['hardware']['cpu']}", fontsize=10)
        axes.set_ylabel("nanoseconds each")
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3, which="both", linewidth=0.5)
        files.append(folder / f"growth-{sweep}.png")
        figure.savefig(files[-1], dpi=110)
    return files


def _scale_axes(axes: Any, sweep: str, values: list[int]) -> None:
    axes.set_yscale("log")
    if sweep in ("batch", "canvas_size"):
        axes.set_xscale("log", base=2)
    elif sweep == "num_clutter":
        axes.set_xscale("symlog", base=2, linthresh=1)
    axes.set_xticks(values, [f"{value:,}" for value in values])
    axes.minorticks_off()
    axes.set_xlabel(LABELS[sweep])


def _mark_caches(axes: Any, result: dict[str, Any]) -> None:
    """Lines where the canvases alone, a byte a pixel, fill a cache; the environment keeps several bytes a pixel."""
    from ram_gym import get_task

    row = next(row for row in result["rows"] if row["sweep"] == "batch")
    canvas = get_task(row["task"]).config.canvas_size ** 2
    low, high = axes.get_xlim()
    for level, size in result["hardware"]["caches"].items():
        lanes = size / canvas
        if low < lanes < high:
            axes.axvline(lanes, color="grey", linewidth=0.8, linestyle=(0, (1, 3)))
            axes.annotate(f"canvases fill {level}", (lanes, 0.02), xycoords=("data", "axes fraction"), rotation=90,
                          fontsize=7, color="grey", ha="right")  # fmt: skip
