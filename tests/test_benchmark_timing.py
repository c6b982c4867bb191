"""What benchmarks make of times: medians, rounds and aims."""

from __future__ import annotations

from typing import Any

from benchmarks.report import aims
from benchmarks.timing import Settings, measure, pool


class Clock:
    """Time that passes only where the test says so."""

    def __init__(self, durations: list[float]) -> None:
        self.now, self.durations, self.runs = 100.0, iter(durations), 0

    def run(self) -> None:
        self.now += next(self.durations)
        self.runs += 1

    def __call__(self) -> float:
        return self.now


def test_measure_leaves_the_warm_up_out_and_gives_median_and_spread() -> None:
    # The first pass takes 50 s; then 1 s each. A repeat of 2 s is two passes: 2, 5, 3, 2.5 and 9 s.
    clock = Clock([50, 1, *(1, 1), *(1, 1), *(2, 3), *(1, 2), *(1, 1.5), *(4, 5)])
    found = measure(clock.run, 10, "things", Settings(5, 2.0, 0.1), clock=clock)
    assert clock.runs == 14
    assert found["warm_up"] == {"passes": 4, "seconds": 53}
    assert found["seconds"] == {"median": 3, "min": 2, "max": 9, "all": [2, 5, 3, 2.5, 9]}
    assert (found["passes"], found["work"], found["unit"]) == (2, 20, "things")
    assert found["rate"] == {"median": 20 / 3, "min": 20 / 9, "max": 10}


def test_measure_warms_up_for_as_long_as_asked_and_stops_early_where_passes_are_long() -> None:
    clock = Clock([1] * 5 + [30] * 9)
    found = measure(clock.run, 1, "things", Settings(9, 0.5, 4.5), clock=clock)
    assert found["warm_up"] == {"passes": 5, "seconds": 5}
    assert found["seconds"]["all"] == [30, 30, 30]


def test_measure_waits_for_the_device_before_it_reads_the_clock() -> None:
    clock = Clock([1] * 100)

    def wait() -> None:
        clock.now += 7

    assert measure(clock.run, 1, "things", Settings(3, 0.0, 0.0), wait, clock)["seconds"]["all"] == [8, 8, 8]


def test_a_pass_that_is_quick_by_chance_does_not_make_the_warm_up_long() -> None:
    clock = Clock([1e-6] + [1] * 1000)
    found = measure(clock.run, 1, "things", Settings(3, 2.0, 0.0), clock=clock)
    assert (found["warm_up"]["passes"], found["passes"]) == (1 + 10, 10)


def test_a_repeat_is_as_long_as_asked_though_waiting_takes_longer_than_a_pass() -> None:
    clock = Clock([1] * 1000)

    def wait() -> None:
        clock.now += 7

    # A pass and the wait take 8 s, so that 40 s look like five passes, which take 12.
    found = measure(clock.run, 1, "things", Settings(3, 40.0, 0.0), wait, clock)
    assert found["seconds"]["min"] >= 40
    assert found["seconds"]["max"] < 60


def test_rounds_are_pooled_over_the_same_work() -> None:
    rounds = []
    for passes, durations in ((2, [2, 2, 6]), (1, [2, 5, 9])):
        clock = Clock([*[1 / passes] * (passes + 1), *(second / passes for second in durations for _ in range(passes))])
        rounds.append(measure(clock.run, 10, "things", Settings(3, 1.0, 0.0), clock=clock))
    assert [(row["passes"], row["seconds"]["all"]) for row in rounds] == [(2, [2, 2, 6]), (1, [2, 5, 9])]
    pooled = pool(rounds)
    # A round of one pass did half the work: its repeats count double.
    assert pooled["seconds"] == {"median": 5, "min": 2, "max": 18, "all": [2, 2, 6, 4, 10, 18]}
    assert (pooled["work"], pooled["rate"]) == (20, {"median": 4, "min": 20 / 18, "max": 10})
    skipped = {"skipped": "no room"}
    assert pool([skipped, rounds[0]]) == {**rounds[0], "rounds_skipped": 1}
    assert pool([skipped, *rounds]) == {**pooled, "rounds_skipped": 1}
    assert pool([skipped, skipped]) == skipped


def test_aims_compare_rows_of_the_same_place() -> None:
    def row(measure: str, rate: float, threads: int = 1, variant: str = "", batch: int = 1024) -> dict[str, Any]:
        case = {"measure": measure, "task": "mnist-28", "batch": batch, "threads": threads, "device": "cpu"}
        return {**case, "variant": variant, "rate": {"median": rate, "min": rate / 2, "max": rate * 2}}

    rows = [
        row("stepping.vector", 1000, 1, "NextStep numpy"),
        row("stepping.vector", 9000, 2, "NextStep numpy"),
        row("peers.ap_gym_vector", 5, 1),
        row("peers.ap_gym_vector", 50, 2),
    ]
    body = aims({"stepping": {"rows": rows, "hardware": {"gpus": []}}}).rows
    assert [line[2:] for line in body[:2]] == [["200 x (50 to 800)", "reached"], ["180 x (45 to 720)", "MISSED"]]
    rows = [row("training.native", 640, batch=256), row("training.plain", 64, variant="as published", batch=32)]
    body = aims({"training": {"rows": rows}}).rows
    assert [line[2:] for line in body] == [["10 x (2.5 to 40)", "reached"]]
    assert "batch 256, " in body[0][0]


def test_aims_on_a_gpu_are_the_best_rate_of_each_task_and_its_share_of_the_limit() -> None:
    def row(measure: str, task: str, batch: int, rate: float, variant: str = "") -> dict[str, Any]:
        case = {"measure": f"stepping.{measure}", "task": task, "batch": batch, "threads": 1, "device": "cuda"}
        return {**case, "variant": variant, "rate": {"median": rate}}

    rows = [
        row("sensor", "translated-60", 256, 3e8, "prepared"),
        row("sensor", "translated-60", 4096, 2e8, "prepared"),
        row("sensor", "cluttered-60", 4096, 9e7, "prepared"),
        row("sensor", "cluttered-60", 4096, 9e9, "fresh"),
        row("sensor", "cluttered-100", 4096, 9e9, "prepared"),  # not a 12x12x3 sensor
        row("limit", "translated-60", 256, 1e9),
        row("limit", "cluttered-60", 4096, 1.5e8),
    ]
    hardware = {"gpus": [{"name": "NVIDIA H200"}]}
    body = aims({"stepping": {"rows": rows, "hardware": hardware}}).rows
    assert [line[2:] for line in body] == [
        ["300 M", "reached"],
        ["0.30", "MISSED"],
        ["90 M", "MISSED"],
        ["0.60", "reached"],
    ]
    assert "translated-60, batch 256" in body[0][0]
    assert "cluttered-60, batch 4,096" in body[2][0]
    assert aims({"stepping": {"rows": [], "hardware": {"gpus": []}}}).rows[0][2:] == ["no GPU", "not measured"]
