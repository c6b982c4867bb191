"""Run folders: what a training run leaves behind, written so that a kill at any moment leaves it readable.

config.json          the run's configuration, command and package versions
metrics.jsonl        one JSON object per epoch; the same numbers stand in TensorBoard's event files beside it
last.safetensors     everything that resuming needs
best.safetensors     the weights that did best on the validation split
                     (last_model.zip and best_model.zip of a Stable-Baselines3 run, whose progress.csv is beside them)
results.json         what was found: validation while training, each evaluation after it
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
"""Of config.json, and of what its configuration means. `agents.training.migrate` knows the older ones."""
MIGRATE = f"{PROGRAM} migrate"

TEMPORARY = ".ram_gym-*.tmp"
"""What `ram_gym.files.write_file` writes first; where a kill ended it, it lies there still."""


class RunFolder:
    """The files of one run.

    Args:
        path: the folder; it need not exist.
        command: what began the run, for config.json; default: this process's arguments.
    """

    def __init__(self, path: str | os.PathLike[str], command: list[str] | None = None) -> None:
        self.path = Path(path)
        self.command = sys.argv if command is None else command

    @property
    def name(self) -> str:
        """What to call the run: its folder's name, and of a folder seed-N the name above it as well."""
        path = self.path.resolve()
        return f"{path.parent.name}/{path.name}" if re.fullmatch(r"seed-\d+", path.name) else path.name

    @contextmanager
    def training(self) -> Iterator[None]:
        """While inside, no other process trains in this folder. Makes the folder.

        Raises:
            RunError: another process trains in it, or its name is none that files of other programs can hold.
        """
        try:
            os.fspath(self.path).encode()
        except UnicodeEncodeError:
            encoding = sys.getfilesystemencoding()
            raise RunError(f"a run's folder must have a name that is {encoding} text, got {str(self.path)!a}") from None
        with locked(self.path):
            with self._results_lock():  # so that nobody else is writing either
                for left in self.path.glob(TEMPORARY):
                    left.unlink()
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
        """Makes the folder and writes config.json.

        Args:
            agent: name of the agent.
            config: its configuration.
            data: what it learns from; None reads it.
            packages: the agent's own, whose versions are written beside those of `agents.training.machine.PACKAGES`.
            ranks: the number of processes that begin the run.

        Raises:
            RunError: a run is there already.
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
        """Adds to config.json where, when and by what the run goes on.

        Args:
            epoch: complete epochs, after which it goes on.
            changes: fields of the configuration that have another value from now on.
            packages: as `create` takes them.
            ranks: the number of processes that go on with the run.

        Says what of the hardware differs from what the run was trained on last.
        """
        about = self.read_about()
        resumed = list(about.get("resumed", []))
        before = (resumed[-1] if resumed else about).get("hardware", {})
        now = circumstances(packages, ranks)
        resumed.append({"epoch": epoch, "command": self.command, **now})
        self.write_json("config.json", {**about, "config": {**about["config"], **(changes or {})}, "resumed": resumed})
        pairs = now["hardware"].items()
        changed = "; ".join(f"{key} {value}, not {before.get(key)}" for key, value in pairs if value != before.get(key))
        if changed:
            say(f"Numbers may differ from those of an unbroken run, which was trained elsewhere: {changed}")

    def require_no_run(self) -> None:
        """Raises RunError if a run is there already."""
        if os.path.lexists(self.path / "config.json"):
            raise RunError(f"{self.path} holds a run already: choose another --out, or continue it with --resume")

    def read_config(self, agent: str) -> dict[str, Any]:
        """The configuration of an agent's run.

        Raises:
            RunError: there is no run, or it is another agent's.
        """
        about = self.read_about()
        if about.get("agent") != agent:
            raise RunError(f"{self.path} is a run of {about.get('agent')!r}, not of {agent!r}")
        return about["config"]

    def read_as(self, kind: type[Config], *agents: str) -> Config:
        """The configuration of a run of one of some agents.

        Raises:
            RunError: there is no run, it is another agent's, or a field of its configuration is not what it must be.
        """
        agent = self.read_agent()
        fields = self.read_config(agent if agent in agents else agents[0])
        try:
            return kind.from_dict(fields)
        except ValueError as error:
            raise RunError(f"{self.path}/config.json: {error}{self._hint(error)}") from error

    def read_agent(self) -> str:
        """The name of the agent whose run it is.

        Raises:
            RunError: there is no run.
        """
        return str(self.read_about().get("agent"))

    def read_about(self) -> dict[str, Any]:
        """What config.json holds.

        Raises:
            RunError: there is no run, or the file is damaged.
        """
        about = self.read_json("config.json", self)
        if about is self:
            raise RunError(f"{self.path} holds no run: there is no config.json in it")
        if not isinstance(about, dict) or not isinstance(about.get("config"), dict):
            raise RunError(f"{self.path}/config.json is damaged: it holds no configuration")
        if about.get("format") != FORMAT:
            older = f"{self.path}/config.json has format {about.get('format', 1)!r} and this version reads {FORMAT}"
            raise RunError(f"{older}: {MIGRATE} {self.path} brings an older run up to date")
        about = self._check("config.json", About, about)
        if about["fingerprint"] != fingerprint(about["data"]):
            raise RunError(f"{self.path}/config.json is damaged: its fingerprint is not that of its data")
        return about

    def _check(self, name: str, kind: type, value: Any) -> Any:
        """The value of a file, checked against the annotations of a class.

        Raises:
            RunError: a field is missing, unknown or wrong.
        """
        try:
            return check_stored(kind, value)
        except ValueError as error:
            raise RunError(f"{self.path / name}: {error}{self._hint(error)}") from error

    def _hint(self, error: ValueError) -> str:
        return f"; {MIGRATE} {self.path} adds it" if str(error).endswith(" is missing") else ""

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file, whole or not at all."""
        replace_file(self.path / name, json.dumps(value, indent=2, allow_nan=False) + "\n")

    def read_json(self, name: str, default: Any = None) -> Any:
        """What a JSON file holds, or the default where there is none."""
        try:
            return json.loads(read_file(self.path / name))
        except FileNotFoundError:
            return default
        except RunError:
            raise
        except (ValueError, RecursionError) as error:
            raise RunError(f"{self.path / name} is damaged: {error}") from error

    def write_tensors(self, name: str, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Writes a safetensors file with what `HEADERS` names beside the tensors, whole or not at all."""
        replace_file(self.path / name, encode(tensors, about))

    def read_tensors(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors of a safetensors file, on the CPU, and what it holds beside them, see `HEADERS`.

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
        """Puts the weights of best.safetensors into a network.

        Args:
            model: the network; nothing of it changes where the weights do not fit.
            stored_as: a dtype that float32 weights may be stored as.

        Returns:
            The epoch they are of.

        Raises:
            RunError: there are none, or they are damaged, not finite, or of another network.
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
        """The rows of metrics.jsonl; a last line that a kill cut short is left out.

        Raises:
            RunError: another line is no JSON object of an epoch.
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
                    what = f"line {number} is no row of an epoch: {error}; remove the line, whose numbers are lost"
                    raise RunError(f"{self.path}/metrics.jsonl is damaged: {what}") from error
                break
            rows.append(row)
        return rows

    def truncate_metrics(self, epochs: int) -> None:
        """Keeps the rows of the first `epochs` epochs, and says which of these have none."""
        rows = [row for row in self.read_metrics() if row["epoch"] <= epochs]
        replace_file(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        lost = sorted(set(range(1, epochs + 1)) - {row["epoch"] for row in rows})
        if lost:
            which = f"{len(lost)} of {epochs} epochs, {lost[0]} to {lost[-1]}"
            say(f"{self.path}/metrics.jsonl has no rows of {which}: these numbers are lost, the weights are not")

    def add_result(self, key: str, value: Any) -> None:
        """Sets one entry of results.json; several processes may, each in its turn."""
        with self._results_lock():
            known = self.read_json("results.json", {})
            if not isinstance(known, dict):
                raise RunError(f"{self.path}/results.json is damaged: it holds no object")
            self.write_json("results.json", {**known, key: value})

    def read_results(self) -> dict[str, dict[str, Any]]:
        """What results.json holds: a `Result` by what was measured; nothing where there is no file.

        Raises:
            RunError: it holds something else.
        """
        results = self.read_json("results.json", {})
        if not isinstance(results, dict):
            raise RunError(f"{self.path}/results.json is damaged: it holds no object")
        return {key: self._check(f"results.json: {key}", Result, entry) for key, entry in results.items()}

    def remove_results(self) -> None:
        """Removes results.json, whose entries are of weights that training is about to replace."""
        with self._results_lock():
            (self.path / "results.json").unlink(missing_ok=True)

    def _results_lock(self) -> FileLock:
        lock = self.path / ".results.json.lock"
        require_regular(lock)
        return FileLock(lock)
