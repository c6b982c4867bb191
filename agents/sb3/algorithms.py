"""PPO and RecurrentPPO whose rollout buffers store the right labels of ended episodes, for the auxiliary loss.

Nothing else differs from the originals. The observations that a policy acts on contain no label.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer

from .network import LABEL


class _Labelled:
    """A rollout buffer whose batches have `label` among the observations; see `agents.sb3.network.LABEL`."""

    def reset(self: Any) -> None:
        """Empties the buffer."""
        self.obs_shape.pop(LABEL, None)
        super().reset()  # type: ignore[misc]
        self.labels = np.zeros((self.buffer_size, self.n_envs, 1), np.float32)

    def store_labels(self: Any, infos: list[dict[str, Any]], dones: np.ndarray) -> None:
        """Stores the labels of the episodes that end with the next step to be added."""
        for lane in np.flatnonzero(dones):
            self.labels[self.pos, lane] = 1 + infos[lane]["label"]

    def get(self: Any, batch_size: int | None = None) -> Any:
        """The content of the buffer in batches."""
        if LABEL not in self.observations:
            self.observations[LABEL], self.obs_shape[LABEL] = self.labels, (1,)
        return super().get(batch_size)  # type: ignore[misc]


class _LabelledBuffer(_Labelled, DictRolloutBuffer):
    pass


class _LabelledRecurrentBuffer(_Labelled, RecurrentDictRolloutBuffer):
    pass


class LabelledPPO(PPO):
    """PPO for a GlimpsePolicy with an auxiliary loss. Infos of ended episodes must have `label`, as ram_gym's have."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **{"rollout_buffer_class": _LabelledBuffer, **more})

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        super()._update_info_buffer(infos, dones)
        self.rollout_buffer.store_labels(infos, dones)  # type: ignore[attr-defined]


class LabelledRecurrentPPO(RecurrentPPO):
    """RecurrentPPO for a GlimpseLstmPolicy with an auxiliary loss; see LabelledPPO."""

    def _setup_model(self) -> None:
        super()._setup_model()
        self.rollout_buffer = _LabelledRecurrentBuffer(
            self.n_steps,
            self.observation_space,
            self.action_space,
            self.rollout_buffer.hidden_state_shape,  # type: ignore[attr-defined]
            self.device,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            n_envs=self.n_envs,
        )

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        super()._update_info_buffer(infos, dones)
        self.rollout_buffer.store_labels(infos, dones)  # type: ignore[attr-defined]
