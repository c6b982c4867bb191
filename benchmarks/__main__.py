"""The command line: `python -m benchmarks --help`."""

import sys

from benchmarks.cli import main

if __name__ == "__main__":
    main(sys.argv[1:])
