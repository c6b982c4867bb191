"""`python -m agents migrate`: converts run folders of older versions to the current format."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Annotated, Any

import tyro
from safetensors.torch import load

from ram_gym import get_task

from ..registry import AGENTS, RENAMED, get_agent
from .config import TrainConfig
from .environment import find_data_root
from .files import RunError, read_file, replace_file
from .fingerprint import describe_data, fingerprint
from .records import HEADERS
from .run_folder import FORMAT, RunFolder


def migrate(
    folders: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FOLDER")],
    data_root: str | None = None,
) -> None:
    """Convert run folders of older versions to the current format. Runs in the current format are left unchanged.

    This needs the dataset of each run, to compute its fingerprint.

    Args:
        folders: Run folders, or folders that contain run folders at any depth.
        data_root: Folder with the datasets; default: the one that each run was trained with.
    """
    paths = sorted({path.parent for folder in folders for path in folder.rglob("config.json")})
    if not paths:
        raise ValueError(f"there is no config.json in {', '.join(map(str, folders)) or 'no folder'}")
    changed = sum(migrate_run(RunFolder(path), data_root) for path in paths)
    print(f"{len(paths)} runs, {changed} of them converted")


def migrate_run(folder: RunFolder, data_root: str | None = None) -> bool:
    """Converts one run to the current format, and returns whether anything had to change.

    Raises:
        RunError: its config.json is damaged, or names an agent or a field that this version does not have.
        DatasetError: its dataset is missing or damaged.
    """
    stored = folder.read_json("config.json")
    if not isinstance(stored, dict) or not isinstance(stored.get("config"), dict):
        raise RunError(f"{folder.path}/config.json is damaged: it holds no configuration")
    about = rename_agent(stored)
    agent = str(about.get("agent"))
    if agent not in AGENTS:
        raise RunError(f"{folder.path} is a run of {agent!r}, which is no agent of this version")
    try:
        config = _migrate_config(get_agent(agent).CONFIG, about["config"], about.get("format", 1))
    except (TypeError, ValueError) as error:
        raise RunError(f"{folder.path}/config.json: {error}") from error
    parts = {"format": FORMAT, "agent": agent, "config": config.to_dict()}
    if "data" not in about:
        data = describe_data(config.moved(None, find_data_root(config.env_config, data_root)).env_config)
        parts |= {"fingerprint": fingerprint(data), "data": data}
    migrated = {**parts, **about} | parts
    is_changed = json.loads(json.dumps(migrated)) != stored
    if is_changed:
        folder.write_json("config.json", migrated)
    for name in HEADERS:
        is_changed |= _migrate_tensors(folder, name, migrated["fingerprint"])
    for path in folder.path.glob("*_model.zip"):
        is_changed |= _migrate_zip(path, migrated["fingerprint"])
    return is_changed


def rename_agent(about: dict[str, Any]) -> dict[str, Any]:
    """The content of config.json with the current names of Stable-Baselines3's agents: `sb3-ppo` for the older `ppo`.

    Only their configurations have a field `algorithm` that repeats the agent's name, so a native `ppo` is unchanged.
    """
    agent = str(about.get("agent"))
    if agent not in RENAMED or about["config"].get("algorithm") != agent:
        return about
    return {**about, "agent": RENAMED[agent], "config": {**about["config"], "algorithm": RENAMED[agent]}}


def _migrate_config(config_class: type[TrainConfig], fields: dict[str, Any], version: int) -> TrainConfig:
    fields = {"task": config_class.task, **fields}
    if version == 1:
        # Format 1 stored four fields of the environment among those of the training config.
        names = ("dataset", "composition", "num_glimpses", "data_root")
        overrides = {name: fields[name] for name in names if fields.get(name) is not None}
        env_config = get_task(fields["task"]).config.replace(**overrides)
        fields = {name: value for name, value in fields.items() if name not in names}
        fields["env_config"] = env_config.to_dict()
    defaults = config_class(task=fields["task"]).to_dict()  # for fields that the older version did not have
    return config_class.from_dict({**defaults, **fields})


def _migrate_tensors(folder: RunFolder, name: str, run_fingerprint: str) -> bool:
    """Adds the fingerprint and a SHA-256 to a safetensors file without them; the tensors do not change."""
    try:
        data = read_file(folder.path / name)
    except FileNotFoundError:
        return False
    tensors = load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    entries = header.get("__metadata__", {})
    if "sha256" in entries:
        return False
    folder.write_tensors(name, tensors, {**json.loads(entries.get("about", "{}")), "fingerprint": run_fingerprint})
    return True


def _migrate_zip(path: Path, run_fingerprint: str) -> bool:
    """Adds the fingerprint to a Stable-Baselines3 checkpoint without one."""
    with zipfile.ZipFile(io.BytesIO(read_file(path))) as archive:
        state = json.loads(archive.read("run.json"))
        if "fingerprint" in state:
            return False
        entries = {entry: archive.read(entry) for entry in archive.infolist() if entry.filename != "run.json"}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for entry, data in entries.items():
            archive.writestr(entry, data)
        archive.writestr("run.json", json.dumps({**state, "fingerprint": run_fingerprint}))
    replace_file(path, buffer.getvalue())
    return True
