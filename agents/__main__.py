"""The command line: `python -m agents --help`."""

import os
import signal
import sys

from .extras import how_to_install

# Imports take seconds. Ctrl-C during them ends the process at once, without a traceback.
_handler = signal.getsignal(signal.SIGINT)
if _handler is signal.default_int_handler:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
try:
    from .cli import main
except ModuleNotFoundError as error:
    if not how_to_install(error):
        raise
    print(f"error: {error}{how_to_install(error)}", file=sys.stderr)
    sys.exit(2)
signal.signal(signal.SIGINT, _handler)


def run() -> None:
    """The command `ram-gym`."""
    main(sys.argv[1:])


if __name__ == "__main__":
    run()
