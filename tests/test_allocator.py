"""Freed memory is kept for training, where the C library lets it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

ROUNDS = 100
COUNT_FAULTS = f"""
import resource, sys
import numpy as np
from agents.training.allocator import keep_freed_memory

print(keep_freed_memory() if "keep" in sys.argv else None)
for number in range({ROUNDS} + 5):
    if number == 5:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**20)  # 8 MiB, then an array of another size, so that no block is kept by chance
    np.ones(2**20 + 2**18)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="NEEDS GLIBC: there is nothing to set")


def page_faults(*arguments: str, **settings: str) -> tuple[str, int]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))
    } | settings
    command = [sys.executable, "-c", COUNT_FAULTS, *arguments]
    answer, faults = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()
    return answer, int(faults)


def test_kept_memory_is_not_fetched_again() -> None:
    answer, faults = page_faults("keep")
    assert answer == "True"
    assert faults < ROUNDS < page_faults(MALLOC_MMAP_THRESHOLD_="1000000")[1]


@pytest.mark.parametrize(
    "setting",
    [{"MALLOC_MMAP_THRESHOLD_": "1000000"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1000000"}],
    ids=["variable", "tunable"],
)
def test_a_setting_of_the_users_stays(setting: dict[str, str]) -> None:
    answer, faults = page_faults("keep", **setting)
    assert answer == "False"
    assert faults > ROUNDS
