"""Run folders: the files of a training run. They stay readable if the process is killed at any moment.

config.json          the run's configuration, command and package versions
metrics.jsonl        one JSON object per epoch; TensorBoard event files beside it have the same numbers
last.safetensors     the last checkpoint, from which the run resumes
best.safetensors     the weights with the lowest validation error
                     (a Stable-Baselines3 run has last_model.zip, best_model.zip and progress.csv instead)
results.json         the lowest validation error, and the result of each evaluation
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock
from torch import Tensor, nn

from .. import PROGRAM
from ..terminal import say
from .config import TrainConfig
from .files import RunError, locked, open_file, read_file, replace_file, require_regular
from .fingerprint import Data, describe_data, fingerprint
from .machine import circumstances
from .records import HEADERS, About, Result, check_row
from .schema import check_stored
from .tensors import check_tensors, decode, encode

Config = TypeVar("Config", bound=TrainConfig)

FORMAT = 2
"""Version of config.json and of the meaning of its fields. `agents.training.migrate` converts older versions."""
MIGRATE = f"{PROGRAM} migrate"

TEMPORARY = ".ram_gym-*.tmp"
"""Temporary files of `ram_gym.files.write_file`, which remain if the process is killed while it writes."""


class RunFolder:
    """The files of one run.

    Args:
        path: the folder; it need not exist.
        command: the command that begins or resumes the run, for config.json; default: this process's arguments.
    """

    def __init__(self, path: str | os.PathLike[str], command: list[str] | None = None) -> None:
        self.path = Path(path)
        self.command = sys.argv if command is None else command

    @property
    def name(self) -> str:
        """Name of the run: that of its folder, preceded by the parent folder's name if the folder is seed-N."""
        path = self.path.resolve()
        return f"{path.parent.name}/{path.name}" if re.fullmatch(r"seed-\d+", path.name) else path.name

    @contextmanager
    def training(self) -> Iterator[None]:
        """Locks the folder, so that no other process trains in it. Creates the folder.

        Raises:
            RunError: another process trains in it, or its name cannot be encoded as text.
        """
        try:
            os.fspath(self.path).encode()
        except UnicodeEncodeError:
            encoding = sys.getfilesystemencoding()
            raise RunError(f"a run's folder must have a name that is {encoding} text, got {str(self.path)!a}") from None
        with locked(self.path):
            with self._results_lock():  # so that no evaluation is writing
                for leftover in self.path.glob(TEMPORARY):
                    leftover.unlink()
            yield

    def create(
        self,
        agent: str,
        config: TrainConfig,
        data: Data | None = None,
        *,
        packages: tuple[str, ...] = (),
        ranks: int = 1,
    ) -> None:
        """Creates the folder and writes config.json.

        Args:
            agent: name of the agent.
            config: its training config.
            data: description of the environment and data; None computes it.
            packages: further packages of the agent, whose versions config.json records.
            ranks: number of processes.

        Raises:
            RunError: the folder already holds a run.
        """
        self.require_no_run()
        self.path.mkdir(parents=True, exist_ok=True)
        data = data or describe_data(config.env_config)
        about: dict[str, Any] = {"format": FORMAT, "agent": agent, "config": config.to_dict()}
        about |= {"fingerprint": fingerprint(data), "data": data, "command": self.command}
        self.write_json("config.json", {**about, **circumstances(packages, ranks)})

    def note_resume(
        self, epoch: int, changes: dict[str, Any] | None = None, *, packages: tuple[str, ...] = (), ranks: int = 1
    ) -> None:
        """Records in config.json that the run is resumed, and warns if the hardware has changed.

        Args:
            epoch: number of complete epochs.
            changes: fields of the training config that have a new value from now on.
            packages: as in `create`.
            ranks: number of processes.
        """
        about = self.read_about()
        resumed = list(about.get("resumed", []))
        old_hardware = (resumed[-1] if resumed else about).get("hardware", {})
        now = circumstances(packages, ranks)
        resumed.append({"epoch": epoch, "command": self.command, **now})
        self.write_json("config.json", {**about, "config": {**about["config"], **(changes or {})}, "resumed": resumed})
        pairs = now["hardware"].items()
        changed = [
            f"{key} {value}, not {old_hardware.get(key)}" for key, value in pairs if value != old_hardware.get(key)
        ]
        if changed:
            say(f"The hardware has changed, so numbers may differ by rounding: {'; '.join(changed)}")

    def require_no_run(self) -> None:
        """Raises RunError if the folder already holds a run."""
        if os.path.lexists(self.path / "config.json"):
            raise RunError(f"{self.path} already holds a run: choose another --out, or resume the run with --resume")

    def read_config(self, agent: str) -> dict[str, Any]:
        """The fields of the training config, unchecked.

        Raises:
            RunError: there is no run, or it is a run of another agent.
        """
        about = self.read_about()
        if about.get("agent") != agent:
            raise RunError(f"{self.path} is a run of {about.get('agent')!r}, not of {agent!r}")
        return about["config"]

    def read_as(self, config_class: type[Config], *agents: str) -> Config:
        """The training config, of a class, of a run of one of these agents.

        Raises:
            RunError: there is no run, it is a run of another agent, or a field of its training config is wrong.
        """
        agent = self.read_agent()
        fields = self.read_config(agent if agent in agents else agents[0])
        try:
            return config_class.from_dict(fields)
        except ValueError as error:
            raise RunError(f"{self.path}/config.json: {error}{self._hint(error)}") from error

    def read_agent(self) -> str:
        """The name of the agent.

        Raises:
            RunError: there is no run.
        """
        return str(self.read_about().get("agent"))

    def read_about(self) -> dict[str, Any]:
        """The content of config.json.

        Raises:
            RunError: there is no run, or the file is damaged.
        """
        about = self.read_json("config.json", self)
        if about is self:
            raise RunError(f"{self.path} holds no run: it has no config.json")
        if not isinstance(about, dict) or not isinstance(about.get("config"), dict):
            raise RunError(f"{self.path}/config.json is damaged: it holds no configuration")
        if about.get("format") != FORMAT:
            older = f"{self.path}/config.json has format {about.get('format', 1)!r} and this version reads {FORMAT}"
            raise RunError(f"{older}: {MIGRATE} {self.path} converts a run of an older version")
        about = self._check("config.json", About, about)
        if about["fingerprint"] != fingerprint(about["data"]):
            raise RunError(f"{self.path}/config.json is damaged: its fingerprint is not that of its data")
        return about

    def _check(self, name: str, record: type, value: Any) -> Any:
        """The content of a file, checked against the annotations of `record`, a class in `agents.training.records`.

        Raises:
            RunError: a field is missing, unknown or wrong.
        """
        try:
            return check_stored(record, value)
        except ValueError as error:
            raise RunError(f"{self.path / name}: {error}{self._hint(error)}") from error

    def _hint(self, error: ValueError) -> str:
        return f"; {MIGRATE} {self.path} adds it" if str(error).endswith(" is missing") else ""

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file atomically."""
        replace_file(self.path / name, json.dumps(value, indent=2, allow_nan=False) + "\n")

    def read_json(self, name: str, default: Any = None) -> Any:
        """The content of a JSON file, or the default if there is no such file."""
        try:
            return json.loads(read_file(self.path / name))
        except FileNotFoundError:
            return default
        except RunError:
            raise
        except (ValueError, RecursionError) as error:
            raise RunError(f"{self.path / name} is damaged: {error}") from error

    def write_tensors(self, name: str, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Writes a safetensors file atomically. Its metadata `about` has the fields that `HEADERS` names."""
        replace_file(self.path / name, encode(tensors, about))

    def read_tensors(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors of a safetensors file, on the CPU, and its metadata, see `HEADERS`.

        Raises:
            RunError: the file is missing or damaged, or of a run on other data than config.json says.
        """
        path = self.path / name
        try:
            data = read_file(path)
        except FileNotFoundError:
            raise RunError(f"{self.path} has no checkpoint {name} yet") from None
        try:
            tensors, about = decode(data)
        except ValueError as error:
            raise RunError(f"{path} {error}{self._hint(error)}") from error
        header = self._check(name, HEADERS[name], about)
        if header["fingerprint"] != self.read_about()["fingerprint"]:
            raise RunError(f"{path} is of a run on other data than {self.path}/config.json says")
        return tensors, header

    def load_best(self, model: nn.Module, stored_as: torch.dtype | None = None) -> int:
        """Loads the weights of best.safetensors into a network.

        Args:
            model: the network; unchanged if the weights do not fit.
            stored_as: a second dtype in which float32 weights may be stored.

        Returns:
            The epoch of the weights.

        Raises:
            RunError: the file is missing or damaged, or the weights are not finite or of another network.
        """
        weights, header = self.read_tensors("best.safetensors")
        try:
            check_tensors("weights", weights, model.state_dict(), stored_as=stored_as)
        except ValueError as error:
            raise RunError(f"{self.path}/best.safetensors does not fit this configuration: {error}") from error
        model.load_state_dict(weights)
        return header["epoch"]

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Adds one line to metrics.jsonl."""
        with open_file(self.path / "metrics.jsonl", "ab") as file:
            file.write(json.dumps(row, allow_nan=False).encode() + b"\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, without a last line that is incomplete because the process was killed.

        Raises:
            RunError: another line is not the row of an epoch.
        """
        try:
            *lines, last = read_file(self.path / "metrics.jsonl").split(b"\n")
        except FileNotFoundError:
            return []
        rows = []
        for number, line in enumerate([*lines, last], 1):
            try:
                row = json.loads(line)
                check_row(row)
            except (ValueError, RecursionError) as error:
                if number <= len(lines):
                    what = f"line {number} is not the row of an epoch: {error}; remove the line, whose numbers are lost"
                    raise RunError(f"{self.path}/metrics.jsonl is damaged: {what}") from error
                break
            rows.append(row)
        return rows

    def truncate_metrics(self, epochs: int) -> None:
        """Keeps the rows of the first `epochs` epochs, and warns if one of these epochs has no row."""
        rows = [row for row in self.read_metrics() if row["epoch"] <= epochs]
        replace_file(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        lost = sorted(set(range(1, epochs + 1)) - {row["epoch"] for row in rows})
        if lost:
            which = f"{len(lost)} of {epochs} epochs, {lost[0]} to {lost[-1]}"
            say(f"{self.path}/metrics.jsonl has no rows of {which}: these numbers are lost, but no weights")

    def add_result(self, key: str, value: Any) -> None:
        """Sets one entry of results.json. Several processes may do so at once."""
        with self._results_lock():
            results = self.read_json("results.json", {})
            if not isinstance(results, dict):
                raise RunError(f"{self.path}/results.json is damaged: it holds no object")
            self.write_json("results.json", {**results, key: value})

    def read_results(self) -> dict[str, dict[str, Any]]:
        """The content of results.json, a `Result` by key; empty if there is no file.

        Raises:
            RunError: the file is damaged.
        """
        results = self.read_json("results.json", {})
        if not isinstance(results, dict):
            raise RunError(f"{self.path}/results.json is damaged: it holds no object")
        return {key: self._check(f"results.json: {key}", Result, entry) for key, entry in results.items()}

    def remove_results(self) -> None:
        """Removes results.json, since training is about to replace the weights that it describes."""
        with self._results_lock():
            (self.path / "results.json").unlink(missing_ok=True)

    def _results_lock(self) -> FileLock:
        lock = self.path / ".results.json.lock"
        require_regular(lock)
        return FileLock(lock)
