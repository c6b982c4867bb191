"""Reference agents for ram_gym: `python -m agents --help` in a checkout, `ram-gym --help` where pip installed them."""

import os

PACKAGE = __name__
"""Name of this package: agents in a checkout, ram_gym.agents where pip installed it."""
PROGRAM = "python -m agents" if __name__ == "agents" else "ram-gym"
"""How a user calls the command line, for what it prints."""

# OpenMP threads that wait for each other sleep. By default they spin: one other busy process then makes training on all
# cores several times slower, and nothing is gained on an idle machine. Read when PyTorch is loaded, so it stands here.
os.environ.setdefault("GOMP_SPINCOUNT", "0")
