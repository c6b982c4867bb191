"""Plots of how cost grows, drawn with matplotlib where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.cases import place
from ram_gym import get_task

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
    """Draws FOLDER/growth-SWEEP.png for each sweep of the growth benchmark.

    Above, the time of one lane-step, glimpse or scene, with a band from minimum to maximum; below, its page faults,
    which matter where memory is the host's: not if all ran on a GPU.

    Returns:
        The files; none, and a line that says so, without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        Console(stderr=True).print("no plots: matplotlib is not installed (pip install -e '.[bench]')", markup=False)
        return []
    rows = [row for row in result["rows"] if "rate" in row]
    files = []
    for sweep in dict.fromkeys(row["sweep"] for row in rows):
        swept = [row for row in rows if row["sweep"] == sweep]
        is_on_cpu = any(row["device"] == "cpu" for row in swept)
        figure = Figure(figsize=(7.5, 6.0 if is_on_cpu else 4.5), layout="constrained")
        axes = figure.subplots(2, sharex=True, height_ratios=(3, 1)) if is_on_cpu else [figure.subplots()]
        _draw_lines(axes, swept)
        _scale_axes(axes, sweep, sorted({row["value"] for row in swept}))
        if sweep == "batch" and is_on_cpu:
            _mark_caches(axes, swept[0]["task"], result["hardware"]["caches"])
        axes[0].set_title(_title(sweep, swept, result["hardware"]), fontsize=10)
        axes[0].legend(fontsize=8)
        files.append(folder / f"growth-{sweep}.png")
        figure.savefig(files[-1], dpi=110)
    return files


def _title(sweep: str, rows: list[dict[str, Any]], hardware: dict[str, Any]) -> str:
    """The task, how many lanes where, and the processors' names."""
    lanes = {row["device"]: row["batch"] for row in rows}
    names = [hardware["cpu"]] if "cpu" in lanes else []
    names += [gpu["name"] for gpu in hardware["gpus"]] if lanes.keys() - {"cpu"} else []
    where = [f"{batch:,} lanes" + f" on {device}" * (len(lanes) > 1) for device, batch in lanes.items()]
    return ", ".join([rows[0]["task"], *([] if sweep == "batch" else where)]) + ": " + ", ".join(names)


def _draw_lines(axes: Any, rows: list[dict[str, Any]]) -> None:
    spots = list(dict.fromkeys((row["device"], row["threads"]) for row in rows))
    for measure, (colour, label) in COLOURS.items():
        for spot, style in zip(spots, STYLES, strict=False):
            line = [row for row in rows if (row["measure"], row["device"], row["threads"]) == (measure, *spot)]
            if not line:
                continue
            values = [row["value"] for row in line]
            low, middle, high = ([1e9 / row["rate"][kind] for row in line] for kind in ("max", "median", "min"))
            faults = [row["page_faults"] / (row["work"] / row["passes"]) for row in line]
            look: dict[str, Any] = {"linestyle": style, "marker": "o", "markersize": 3, "color": colour}
            axes[0].plot(values, middle, label=f"{label}, {place(line[0])}", **look)
            axes[0].fill_between(values, low, high, color=colour, alpha=0.2, linewidth=0)
            for below in axes[1:]:
                below.plot(values, faults, **look)


def _scale_axes(axes: Any, sweep: str, values: list[int]) -> None:
    from matplotlib.ticker import LogLocator

    time, lowest = axes[0], axes[-1]
    time.set_yscale("log")
    time.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    time.yaxis.set_major_formatter("{x:,.10g}")
    time.set_ylabel("nanoseconds each")
    for faults in axes[1:]:
        faults.set_ylabel("page faults each")
        faults.set_ylim(bottom=0)
    lowest.set_xlabel(LABELS[sweep])
    if sweep in ("batch", "canvas_size"):
        lowest.set_xscale("log", base=2)
    elif sweep == "num_clutter":
        lowest.set_xscale("symlog", base=2, linthresh=1)
        lowest.set_xlim(-0.3, 1.2 * values[-1])
    lowest.set_xticks(values, [f"{value:,}" for value in values])
    for axis in axes:
        axis.minorticks_off()
        axis.grid(alpha=0.3, linewidth=0.5)


def _mark_caches(axes: Any, task: str, caches: dict[str, int]) -> None:
    """Lines where the canvases alone, a byte a pixel, fill a cache; the environment keeps several bytes a pixel."""
    canvas = get_task(task).config.canvas_size ** 2
    low, high = axes[1].get_xlim()
    for level, size in caches.items():
        if low < size / canvas < high:
            for axis in axes:
                axis.axvline(size / canvas, color="grey", linewidth=0.8, linestyle=(0, (1, 3)))
            note = f"canvases\nfill {level}"
            where = (size / canvas, 0.95)
            axes[1].annotate(
                note, where, xycoords=("data", "axes fraction"), fontsize=7, color="grey", ha="right", va="top"
            )
