"""Tables of what was measured, on the terminal and as Markdown, and whether the aims are reached."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.cases import place

NAMES = ("stepping", "training", "memory", "growth", "profile")
OPERATIONS_SHOWN = 12
GIGABYTE = 1e9

Row = dict[str, Any]


class Table(NamedTuple):
    """A table of text."""

    title: str
    headings: list[str]
    rows: list[list[str]]


def show(result: dict[str, Any]) -> None:
    """Prints a benchmark's tables and notes."""
    console = Console()
    for table in (*tables(result), aims({result["name"]: result})):
        if not table.rows:
            continue
        rich = RichTable(title=table.title, box=box.SIMPLE, title_justify="left")
        for number, heading in enumerate(table.headings):
            rich.add_column(heading, justify="right" if number else "left")
        for row in table.rows:
            rich.add_row(*row)
        console.print(rich, markup=False)
    for note in result["notes"]:
        console.print(note, style="yellow" if note.isupper() or note.startswith(("SKIPPED", "WARN")) else None)


def write_tables(folder: Path) -> None:
    """Writes FOLDER/table.md from every benchmark's JSON in it: aims first, then machines, tables and notes."""
    files = {name: folder / f"{name}.json" for name in NAMES}
    results = {name: _read(file) for name, file in files.items() if file.exists()}
    lines = ["# Benchmarks", "", "Written by `python -m benchmarks`; what each number means: benchmarks/README.md.", ""]
    lines += _markdown(aims(results))
    for result in results.values():
        lines += [f"## {result['name']}", "", *_machine(result), ""]
        for table in tables(result):
            lines += _markdown(table)
        lines += [f"- {note}" for note in result["notes"]] + [""]
    (folder / "table.md").write_text("\n".join(lines).rstrip() + "\n")


def _read(file: Path) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads(file.read_text())
        if not isinstance(result, dict) or "rows" not in result:
            raise ValueError("it has no rows")
    except ValueError as error:
        raise ValueError(f"{file} is damaged, remove it: {error}") from None
    return result


def tables(result: dict[str, Any]) -> list[Table]:
    """The tables of one benchmark."""
    rows = result["rows"]
    if result["name"] == "profile":
        return [_operations(row) for row in rows if "operations" in row]
    if result["name"] == "growth":
        return [_pivot(sweep, part, "value") for sweep, part in _split(rows, "sweep").items()]
    return [_pivot(task, part, "batch") for task, part in _split(rows, "task").items()]


def _split(rows: list[Row], key: str) -> dict[str, list[Row]]:
    return {name: [row for row in rows if row[key] == name] for name in dict.fromkeys(row[key] for row in rows)}


def _pivot(title: str, rows: list[Row], across: str) -> Table:
    """One line for all rows that differ in nothing but `across`; a cell is a median, with minimum and maximum."""
    columns = sorted({row[across] for row in rows})
    lines: dict[tuple[str, str, str], dict[int, str]] = {}
    for row in rows:
        where = place(row)
        name = " ".join(filter(None, (row["measure"].partition(".")[2], row["variant"])))
        lines.setdefault((name, row.get("unit", ""), where), {})[row[across]] = _cell(row)
    # A case that was skipped has no unit: it goes to the line of its kind.
    for key in [key for key in lines if not key[1]]:
        kin = [other for other in lines if other[1] and (other[0], other[2]) == (key[0], key[2])]
        if kin:
            lines[kin[0]].update(lines.pop(key))
    body = []
    for (name, unit, where), cells in lines.items():
        label = f"{unit}/s" if unit else ""
        body.append([name, label, where, *(cells.get(column, "") for column in columns)])
    heading = title if across == "value" else across
    return Table(title, ["what", "unit", "where", *(f"{heading} {column:,}" for column in columns)], body)


def _cell(row: Row) -> str:
    if "skipped" in row:
        return "skipped"
    if "peak_bytes" in row:
        total = row.get("process_peak_bytes")
        whole = "" if total is None else f" (process {total / GIGABYTE:.3g} GB)"
        return f"{row['peak_bytes'] / GIGABYTE:.3g} GB{whole}"
    rate = row["rate"]
    return f"{number(rate['median'])} ({number(rate['min'])} to {number(rate['max'])})"


def number(value: float) -> str:
    """Three digits and a unit: 1234567 -> "1.23 M"."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _operations(row: Row) -> Table:
    body = [
        [entry["name"], f"{entry['calls']:.1f}", f"{entry['milliseconds']:.3f}", f"{100 * entry['share']:.1f}"]
        for entry in row["operations"][:OPERATIONS_SHOWN]
    ]
    title = f"{row['task']}, batch {row['batch']}, {place(row)}, one update"
    return Table(title, ["operation", "calls", "own ms", "own %"], body)


# ---------------------------------------------------------------------------------------------------------------- aims


def aims(results: dict[str, dict[str, Any]]) -> Table:
    """Each aim beside what was measured; "not measured" where a run lacks what it needs."""
    body: list[list[str]] = []
    if "stepping" in results:
        body += _stepping_aims(results["stepping"])
    if "training" in results:
        rows = results["training"]["rows"]
        for task in _split(rows, "task"):
            # The stand-in is compared with the agent at the same place, device and threads.
            for native in (row for row in rows if row["measure"] == "training.native" and row["task"] == task):
                plain = _find(rows, native, measure="training.plain", variant="as published", batch=None)
                name = f"native {native['variant']}".strip()
                title = f"training {task}, batch {native['batch']:,}, {place(native)}: {name} / plain (as published)"
                if plain is not None or native["device"] == "cpu":
                    body.append(_ratio(title, native, plain, 10))
        body += _gpu_aim(rows, results["training"], "training.native", ("cluttered-60",), "images", 500_000)
    if "memory" in results:
        rows = results["memory"]["rows"]
        full = [r for r in rows if r["task"] == "cluttered-100" and r["batch"] == 65_536 and r["device"] == "cpu"]
        for row in full:
            title = "memory of 65,536 x cluttered-100, whole process"
            if "skipped" in row:
                body.append([title, "at most 24 GB", "skipped", "not measured"])
            else:
                peak = row["process_peak_bytes"] / GIGABYTE
                body.append([title, "at most 24 GB", f"{peak:.3g} GB", "reached" if peak <= 24 else "MISSED"])
    return Table("aims", ["aim", "wanted", "measured", ""], body)


def _stepping_aims(result: dict[str, Any]) -> list[list[str]]:
    rows, body = result["rows"], []
    for row in rows:
        if row["measure"] == "stepping.vector" and row["batch"] == 1024 and row["variant"] != "SameStep torch":
            peer = _find(rows, row, measure="peers.ap_gym_vector", variant="")
            if peer is not None:
                title = f"1024 lanes, {row['task']}, {place(row)}: vector ({row['variant']}) / ap_gym"
                body.append(_ratio(title, row, peer, 200))
        if row["measure"] == "stepping.single":
            peer = _find(rows, row, measure="peers.ap_gym_single")
            if peer is not None:
                body.append(_ratio(f"single, {row['task']}, {place(row)}: single / ap_gym's single", row, peer, 20))
    body += _gpu_aim(rows, result, "stepping.sensor", ("translated-60", "cluttered-60"), "12x12x3 glimpses", 1e8)
    return body


def _gpu_aim(
    rows: list[Row], result: dict[str, Any], measure: str, tasks: tuple[str, ...], unit: str, wanted: float
) -> list[list[str]]:
    """The best rate of each task on a GPU beside the aim, and how much of the limit a sensor's is."""
    rows = [row for row in rows if row["device"].startswith("cuda") and row["task"] in tasks]
    found = [row for row in rows if row["measure"] == measure and row["variant"] != "fresh" and "rate" in row]
    what, aim = f"{unit} a second on a GPU, {tasks[-1]}", f"{number(wanted)} on one H200"
    if not found:
        return [[what, aim, "no GPU", "not measured"]] if measure == "stepping.sensor" else []
    gpu = ", ".join(entry["name"] for entry in result["hardware"]["gpus"])
    body = []
    for of_task in _split(found, "task").values():
        best = max(of_task, key=lambda row: row["rate"]["median"])
        rate, variant = best["rate"]["median"], f", {best['variant']}" if best["variant"] else ""
        verdict = ("reached" if rate >= wanted else "MISSED") + ("" if "H200" in gpu else f", on {gpu}")
        what = f"{unit} a second on {gpu}, {best['task']}, batch {best['batch']:,}{variant}"
        body.append([what, aim, number(rate), verdict])
        limit = _find(rows, best, measure="stepping.limit", variant="")
        if limit is not None and "rate" in limit:
            share = rate / limit["rate"]["median"]
            title = f"the same, of what a copy of the bytes of a step reaches ({number(limit['rate']['median'])})"
            body.append([title, "0.5", f"{share:.2f}", "reached" if share >= 0.5 else "MISSED"])
    return body


def _find(rows: list[Row], like: Row, **changes: Any) -> Row | None:
    """The row that is where `like` is, with some fields changed (None: whatever it is)."""
    wanted = {key: like[key] for key in ("task", "batch", "threads", "device", "variant")} | changes
    for row in rows:
        if all(value is None or row[key] == value for key, value in wanted.items()):
            return row
    return None


def _ratio(title: str, ours: Row, peer: Row | None, wanted: int) -> list[str]:
    if peer is None or "rate" not in peer or "rate" not in ours:
        return [title, f"{wanted} x", "", "not measured"]
    mine, theirs = ours["rate"], peer["rate"]
    ratio = mine["median"] / theirs["median"]
    spread = f"{mine['min'] / theirs['max']:.3g} to {mine['max'] / theirs['min']:.3g}"
    return [title, f"{wanted} x", f"{ratio:.3g} x ({spread})", "reached" if ratio >= wanted else "MISSED"]


# ------------------------------------------------------------------------------------------------------------ Markdown


def _markdown(table: Table) -> list[str]:
    if not table.rows:
        return []
    lines = [table.headings, ["---"] + ["---:"] * (len(table.headings) - 1), *table.rows]
    return [f"### {table.title}", "", *(f"| {' | '.join(cells)} |" for cells in lines), ""]


def _machine(result: dict[str, Any]) -> list[str]:
    machine, settings = result["hardware"], result["settings"]
    gpus = ", ".join(f"{gpu['name']} ({gpu['memory_gb']} GiB)" for gpu in machine["gpus"]) or "no GPU"
    caches = ", ".join(f"{level} {size // 1024:,} KiB" for level, size in machine["caches"].items())
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    variables = " ".join(f"{key}={value}" for key, value in machine["environment"].items())
    commit = f"; commit {machine['commit']}" if machine.get("commit") else ""
    several = settings.get("rounds", 1) > 1
    rounds = f", in each of {settings['rounds']} rounds of fresh processes" if several else ""
    return [
        f"`{' '.join(result['command'])}`, {result['started']}. {machine['cpu']}, {machine['cores']} cores, {caches}, "
        f"{machine['memory_gb']} GiB of memory, {gpus}; {versions}; {variables}; load average "
        f"before: {machine['load_average_before']}{commit}. Medians (minimum to maximum) of up to "
        f"{settings['repeats']} repeats of about {settings['seconds']} s, after {settings['warm_up_seconds']} s of "
        f"warm-up{rounds}."
    ]
