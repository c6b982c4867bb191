"""The command line: `python -m agents --help`."""

import sys

from .extras import how_to_install

try:
    from .cli import main
except ModuleNotFoundError as error:
    if not how_to_install(error):
        raise
    print(f"error: {error}{how_to_install(error)}", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    main(sys.argv[1:])
