"""Trains PPO and RecurrentPPO by Stable-Baselines3, and writes the run folder.

At the beginning of an epoch, random generators and environments are seeded from (seed, epoch). So a run resumes
bit-exactly from its last complete epoch.
"""

from __future__ import annotations

import copy
import math
import os
import time
from contextlib import ExitStack
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.logger import (
    CSVOutputFormat,
    KVWriter,
    Logger,
    TensorBoardOutputFormat,
)
from stable_baselines3.common.utils import set_random_seed

from ..terminal import say
from ..training.files import require_regular
from ..training.fingerprint import describe_data, fingerprint, is_other_data
from ..training.interrupts import noted_interrupts
from ..training.learner import OnProgress, Progress, TrainResult
from ..training.ranks import ALONE, Ranks
from ..training.run_folder import RunError, RunFolder
from .checkpoint import BEST, LAST, RunState, load_checkpoint, save_checkpoint
from .config import Sb3Config
from .policy import make_env, make_model

PACKAGES = ("stable-baselines3", "sb3-contrib")


class RunCallback(EvalCallback):
    """Begins and ends epochs: seeds, validates, saves the best and the last model, writes metrics.

    Args:
        config: training config of the run.
        folder: folder to write the run to; None writes nothing.
        is_interrupted: returns whether to stop; called at each step.
        on_progress: called a few times a second.
    """

    def __init__(
        self,
        config: Sb3Config,
        folder: RunFolder | None,
        is_interrupted: Any = lambda: False,
        on_progress: OnProgress | None = None,
    ) -> None:
        env_config = config.env_config.replace(split="validation")
        num_images = make_env(config, env_config, 1).get_attr("num_images")[0]
        validation_env = make_env(config, env_config, num_images)
        super().__init__(validation_env, n_eval_episodes=num_images, eval_freq=1, verbose=0)
        self.config, self.folder, self.is_interrupted, self.on_progress = config, folder, is_interrupted, on_progress
        self.data = describe_data(config.env_config)
        self.epoch = 0  # number of complete epochs
        self.seconds = 0.0  # training time of complete epochs, without validation
        self.best: tuple[float, int] = (math.inf, 0)  # validation error in percent, epoch
        self.last_metrics: dict[str, Any] | None = None
        self._is_training = False
        self._episodes = self._successes = 0  # in this epoch
        self._epoch_start = self._reported = self._began = time.perf_counter()
        self._steps_before = 0

    @property
    def epoch_steps(self) -> int:
        """Environment steps of a whole epoch."""
        return self.config.rollout_steps * self.config.rollouts_per_epoch

    def state(self) -> RunState:
        """How far training has come."""
        return RunState(
            epoch=self.epoch,
            seconds=self.seconds,
            steps=self.num_timesteps,
            updates=self.model._n_updates,
            best_error=self.best[0] if self.best[1] else None,
            best_epoch=self.best[1],
            fingerprint=fingerprint(self.data),
        )

    def restore(self, state: RunState) -> None:
        """Restores the state of a checkpoint.

        Raises:
            ValueError: no epoch of this run ends after so many steps.
        """
        ends = min(state.epoch * self.epoch_steps, self.config.total_steps)
        if not 1 <= state.epoch <= self.config.epochs or state.steps != ends:
            raise ValueError(
                f"epoch must be in 1 to {self.config.epochs} and steps {ends}, got {state.epoch} and {state.steps}"
            )
        self.epoch, self.seconds = state.epoch, state.seconds
        if state.best_error is not None:
            self.best = (state.best_error, state.best_epoch)
            self.best_mean_reward = 1 - state.best_error / 100

    def _on_training_start(self) -> None:
        self._began, self._steps_before = time.perf_counter(), self.num_timesteps

    def _on_step(self) -> bool:
        for lane in np.flatnonzero(self.locals["dones"]):
            self._episodes += 1
            self._successes += bool(self.locals["infos"][lane]["is_success"])
        now = time.perf_counter()
        if self.on_progress is not None and now - self._reported > 0.25:
            self._reported = now
            self._tell(now)
        return not self.is_interrupted()

    def _on_rollout_start(self) -> None:
        if self.num_timesteps == (self.epoch + self._is_training) * self.epoch_steps:
            if self._is_training:
                self._end_epoch()
            self._begin_epoch()

    def _on_training_end(self) -> None:
        if self._is_training and not self.is_interrupted():
            self._end_epoch()

    def _begin_epoch(self) -> None:
        words = np.random.SeedSequence((self.config.seed, self.epoch)).generate_state(3)
        set_random_seed(int(words[0]), using_cuda=self.model.device.type == "cuda")
        self.training_env.seed((int(words[1]) << 29) + int(words[2]))
        # Stable-Baselines3 sets these two when learning begins.
        self.model._last_obs = self.training_env.reset()  # type: ignore[assignment]
        self.model._last_episode_starts = np.ones(self.training_env.num_envs, bool)
        self._episodes = self._successes = 0
        self._is_training, self._epoch_start = True, time.perf_counter()

    def _end_epoch(self) -> None:
        """Validates by EvalCallback on each validation image once, saves models and writes metrics."""
        self.seconds += time.perf_counter() - self._epoch_start
        self._is_training, self.epoch = False, self.epoch + 1
        learned = {key: value for key, value in self.logger.name_to_value.items() if key.startswith("train/")}
        self.eval_env.set_options([{"index": index} for index in range(self.eval_env.num_envs)])
        super()._on_step()
        error = 100 * (1 - float(np.mean(self._is_success_buffer)))
        if error < self.best[0]:
            self.best = (error, self.epoch)
            self._save(BEST)
        metrics: dict[str, Any] = {
            "epoch": self.epoch,
            "steps": self.num_timesteps,
            "train_accuracy_percent": 100 * self._successes / max(self._episodes, 1),
            "validation_error_percent": error,
            "train_seconds": round(self.seconds, 1),
            **{key.removeprefix("train/"): float(value) for key, value in learned.items() if math.isfinite(value)},
        }
        self.last_metrics = metrics
        if self.folder is not None:
            self.folder.append_metrics(metrics)
            self._save(LAST)
        self._tell(time.perf_counter())

    def _save(self, name: str) -> None:
        if self.folder is not None:
            save_checkpoint(self.model, self.folder, name, self.state())

    def _tell(self, now: float) -> None:
        if self.on_progress is None:
            return
        total, epochs = self.config.total_steps, self.config.epochs
        speed = (self.num_timesteps - self._steps_before) / max(now - self._began, 1e-9)
        left = (total - self.num_timesteps) / max(speed, 1e-9)
        done = self.num_timesteps / total
        epoch = min(self.epoch + 1, epochs)
        self.on_progress(Progress(epoch, epochs, done, f"{speed:,.0f} steps/s", left, self.last_metrics))


def train(
    config: Sb3Config,
    folder: RunFolder | None = None,
    *,
    resume: bool = False,
    init: RunFolder | None = None,
    on_progress: OnProgress | None = None,
    ranks: Ranks = ALONE,
) -> TrainResult:
    """Trains PPO or RecurrentPPO.

    Reads the test split only to compute its fingerprint. In the main thread, Ctrl-C (SIGINT) or SIGTERM stops training;
    the run then resumes from its last complete epoch.

    Args:
        config: training config of the run.
        folder: folder to write the run to; None writes nothing.
        resume: resume from the folder's last complete epoch, or from the beginning if there is none.
        init: a run of the same agent whose best weights are the initial ones; None draws random weights.
        on_progress: called a few times a second.
        ranks: must be one process.

    Raises:
        RunError: a new run: the folder already holds a run. Resuming: the folder holds no run with this configuration,
            or a file is missing or damaged. Either: another process trains in the folder, `init` does not fit, or
            training diverged.
        ValueError: there are several processes.
    """
    if ranks.size > 1:
        raise ValueError(f"{config.agent} trains in one process, got {ranks.size}")
    if folder is not None and not resume:
        folder.require_no_run()
    if folder is not None and resume:
        other = f"--like {folder.path} begins another run"
        is_other_data(folder.read_about()["data"], config.env_config, ("train", "validation"), folder.path, other)
    env = make_env(config, config.env_config, config.n_envs, shaped=True)
    model = make_model(config, env)
    if init is not None and not resume:
        init.read_config(config.agent)
        load_checkpoint(init, BEST, model.policy)
    with noted_interrupts() as is_interrupted, ExitStack() as stack:
        callback = RunCallback(config, folder, is_interrupted, on_progress)
        if folder is not None:
            if resume:
                folder.read_about()
            stack.enter_context(folder.training())
            if resume:
                _restore(folder, model, callback)
            folder.truncate_metrics(callback.epoch)
            if not resume:
                folder.create(config.algorithm, config, callback.data, packages=PACKAGES)
            elif callback.epoch < config.epochs:
                folder.note_resume(callback.epoch, packages=PACKAGES)
            callback.last_metrics = next(reversed(folder.read_metrics()), None)
            if callback.epoch < config.epochs:
                folder.remove_results()
        model.set_logger(_logger(folder, callback.epoch))
        if callback.epoch < config.epochs:
            try:
                model.learn(
                    config.total_timesteps - model.num_timesteps,
                    callback,
                    log_interval=config.rollouts_per_epoch,
                    reset_num_timesteps=False,
                )
            except (ValueError, RuntimeError) as error:
                # A distribution or the environment raises this for an output that is NaN or infinite, which comes from
                # weights that are, or whose squares are.
                if all(parameter.square().sum().isfinite() for parameter in model.policy.parameters()):
                    raise
                what = f"training diverged in epoch {callback.epoch + 1}: an output is NaN or infinite"
                raise RunError(f"{what}; lower learning_rate") from error
        model.logger.close()
        is_complete = callback.epoch == config.epochs
        best_error, best_epoch = callback.best
        if folder is not None and is_complete:
            result: dict[str, Any] = {"error_percent": best_error, "epoch": best_epoch, "epochs": config.epochs}
            steps = (callback.last_metrics or {}).get("steps")
            folder.add_result("validation", {**result, "train_seconds": round(callback.seconds, 1), "steps": steps})
    return TrainResult(is_complete, best_epoch, best_error)


def _restore(folder: RunFolder, model: Any, callback: RunCallback) -> None:
    """Restores the last complete epoch, or prints that there is none.

    Raises:
        RunError: a checkpoint is missing, damaged or of another run.
    """
    if not os.path.lexists(folder.path / LAST):
        rows = folder.read_metrics()
        if len(rows) > 1:
            raise RunError(
                f"{folder.path} cannot be resumed: {LAST} is missing, and metrics.jsonl has {len(rows)} epochs"
            )
        say(f"{folder.path} has no complete epoch: training starts again")
        return
    state = load_checkpoint(folder, LAST, model.policy, model.policy.optimizer)
    try:
        callback.restore(state)
    except ValueError as misfit:
        raise RunError(f"{folder.path}/{LAST} does not fit its config.json: {misfit}") from misfit
    if state.best_epoch:
        epoch = load_checkpoint(folder, BEST, copy.deepcopy(model.policy)).epoch
        if epoch < state.best_epoch:  # newer is fine: the process was killed before it wrote the last model
            raise RunError(
                f"{folder.path}/{BEST} is of epoch {epoch}, and the best so far was epoch {state.best_epoch}"
            )
    model.num_timesteps, model._n_updates = state.steps, state.updates


def _logger(folder: RunFolder | None, epoch: int) -> Logger:
    """Stable-Baselines3's logger: progress.csv and TensorBoard events in the folder.

    A resumed run writes to a new file, progress-from-EPOCH.csv, since the logger would empty the old one.
    """
    outputs: list[KVWriter] = []
    if folder is not None:
        name = f"progress-from-{epoch}.csv" if epoch else "progress.csv"
        require_regular(folder.path / name)
        outputs += [CSVOutputFormat(str(folder.path / name)), TensorBoardOutputFormat(str(folder.path))]
    return Logger(str(folder.path) if folder is not None else None, outputs)
