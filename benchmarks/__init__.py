"""Benchmarks of ram_gym and its agents: run from a checkout, `python -m benchmarks --help`."""

import agents  # noqa: F401  (sets how OpenMP threads wait, which is read when PyTorch is loaded; peers get the same)
