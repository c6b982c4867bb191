"""Tells the user how to install a missing package. It imports no package, so it works if all are missing."""

from __future__ import annotations

_EXTRAS = {"stable_baselines3": "agents,sb3", "sb3_contrib": "agents,sb3"}
"""Packages that need more than the extra `agents`, with the extras that install them."""


def how_to_install(error: BaseException) -> str:
    """The end of an error message: how to install the missing package; empty for any other error."""
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if package in ("", "agents", "ram_gym"):
        return ""
    extras = _EXTRAS.get(package, "agents")
    what = f"-c constraints.txt -e '.[{extras}]'" if __package__ == "agents" else f"'ram_gym[{extras}]'"
    return f"; install it with pip install {what}"
