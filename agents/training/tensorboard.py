"""Writes a run's metrics for TensorBoard."""

from __future__ import annotations

from typing import Any

from .run_folder import RunFolder


class TensorBoard:
    """A run's event files: the rows of metrics.jsonl. Events of earlier writers in the folder are hidden."""

    def __init__(self, folder: RunFolder) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder.path), purge_step=1)
        for row in folder.read_metrics():
            self.add(row)

    def add(self, row: dict[str, Any]) -> None:
        """Writes one row of metrics.jsonl."""
        for key, value in row.items():
            if key != "epoch":
                self.writer.add_scalar(key, value, row["epoch"])

    def close(self) -> None:
        """Writes buffered events and closes the file."""
        self.writer.close()
