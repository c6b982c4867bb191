"""`python -m agents migrate`: brings run folders that an older version wrote up to date."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import tyro

from ram_gym import get_task

from ..registry import config_class
from .run_folder import FORMAT, RunError, RunFolder


def migrate(folders: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FOLDER")]) -> None:
    """Bring run folders that an older version wrote up to date; those that are up to date stay as they are.

    Args:
        folders: Run folders, or folders that hold some, at any depth.
    """
    paths = sorted({path.parent for folder in folders for path in folder.rglob("config.json")})
    if not paths:
        raise ValueError(f"there is no config.json in {', '.join(map(str, folders)) or 'no folder'}")
    changed = sum(migrate_run(RunFolder(path)) for path in paths)
    print(f"{len(paths)} runs, of which {changed} were brought up to date")


def migrate_run(folder: RunFolder) -> bool:
    """Brings one run up to date, and tells whether it was not.

    Raises:
        RunError: its config.json is damaged, or of no agent or a field that this version knows.
    """
    about = folder.read_json("config.json")
    if not isinstance(about, dict) or not isinstance(about.get("config"), dict):
        raise RunError(f"{folder.path}/config.json is damaged: it holds no configuration")
    agent = str(about.get("agent"))
    kind = config_class(agent)
    if kind is None:
        raise RunError(f"{folder.path} is a run of {agent!r}, which is no agent of this version")
    try:
        fields = {"task": kind.task, **about["config"]}
        if about.get("format", 1) == 1:
            fields = compose_environment(fields)
        defaults = kind(task=fields["task"]).to_dict()  # of fields that were not there yet
        config = kind.from_dict({**defaults, **fields})
    except (TypeError, ValueError) as error:
        raise RunError(f"{folder.path}/config.json: {error}") from error
    migrated = {"format": FORMAT, **about, "config": config.to_dict()} | {"format": FORMAT}
    if json.loads(json.dumps(migrated)) == about:
        return False
    folder.write_json("config.json", migrated)
    return True


def compose_environment(fields: dict[str, Any]) -> dict[str, Any]:
    """Format 1 named four fields of the environment beside the training's own; format 2 holds it whole."""
    moved = ("dataset", "composition", "num_glimpses", "data_root")
    overrides = {name: fields[name] for name in moved if fields.get(name) is not None}
    own = {name: value for name, value in fields.items() if name not in moved}
    return {**own, "env_config": get_task(fields["task"]).config.replace(**overrides).to_dict()}
