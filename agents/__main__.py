"""The command line: `python -m agents --help`."""

import os
import sys

# OpenMP threads that wait for each other give their core back soon. By default they spin for long, and one other busy
# process makes training on all cores more than ten times slower. Read when PyTorch is loaded, so it stands first.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

from agents.cli import main

if __name__ == "__main__":
    main(sys.argv[1:])
