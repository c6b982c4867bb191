"""Reference agents for ram_gym: run from a checkout, `python -m agents --help`."""

import os

# OpenMP threads that wait for each other give their core back soon. By default they spin for long, and one other busy
# process makes training on all cores more than ten times slower. Read when PyTorch is loaded, so it stands here.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
