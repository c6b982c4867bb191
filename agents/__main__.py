"""The command line: `python -m agents --help`."""

import sys

from .cli import main

if __name__ == "__main__":
    main(sys.argv[1:])
