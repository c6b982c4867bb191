"""What to install where a package is missing. Imports nothing, so that it works where everything is missing."""

from __future__ import annotations

_EXTRAS = {"stable_baselines3": "agents,sb3", "sb3_contrib": "agents,sb3"}
"""Packages that the extra `agents` does not install, and the extras that do."""


def how_to_install(error: BaseException) -> str:
    """The end of a message on a package that is not installed; empty for any other error."""
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if package in ("", "agents", "ram_gym"):
        return ""
    extras = _EXTRAS.get(package, "agents")
    what = f"-c constraints.txt -e '.[{extras}]'" if __package__ == "agents" else f"'ram_gym[{extras}]'"
    return f"; install it with pip install {what}"
