"""Reference agents for ram_gym: `python -m agents --help` in a checkout, `ram-gym --help` after pip install."""

import os

PACKAGE = __name__
"""Name of this package: agents in a checkout, ram_gym.agents after pip install."""
PROGRAM = "python -m agents" if __name__ == "agents" else "ram-gym"
"""The command that users type, for messages."""

# Waiting OpenMP threads sleep instead of spinning. Spinning makes training several times slower beside another busy
# process, and no faster on an idle machine. OpenMP reads this when PyTorch is imported, so it is set first.
os.environ.setdefault("GOMP_SPINCOUNT", "0")
