"""What ram_gym is measured beside, on the same machine in the same run.

`ap_gym` and Gymnasium's vector environments are the packages themselves. The crop loop and the training loop are
STAND-INS: our own code that does the work the way public PyTorch code for Recurrent Attention Models does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cases import Case, Plan, SkippedError
from benchmarks.stepping import draw_actions, time_steps
from benchmarks.timing import measure, synchronizer
from ram_gym import GlimpseConfig, GlimpseEnv, load_dataset

AP_GYM_SENSOR = (8, 8)
AP_GYM_STEPS = 16
"""Its own episode length for MNIST; longer than ours, so it resets less often."""


# ------------------------------------------------------------------------------------------------------------- ap_gym


def _ap_gym_config(case: Case, plan: Plan) -> tuple[Any, Any]:
    """The package, and its image configuration with our images in it."""
    try:
        import ap_gym
        from ap_gym.envs.image import ImageClassificationDataset, ImagePerceptionConfig
    except ImportError as error:
        raise SkippedError(f"ap_gym cannot be imported ({error}): pip install -e '.[bench]'") from None
    config = case.config(plan)
    data = load_dataset(config.dataset, config.split, config.data_root)

    class Images(ImageClassificationDataset):
        """Arrays in memory, handed out a batch at once: quicker than the files that it reads by itself."""

        def _get_num_classes(self) -> int:
            return data.num_classes

        def _get_num_channels(self) -> int:
            return data.images.shape[1]

        def _get_length(self) -> int:
            return len(data.images)

        def _get_data_point_batch(self, idx: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return data.images[idx].transpose(0, 2, 3, 1), data.labels[idx]

    return ap_gym, ImagePerceptionConfig(dataset=Images(), sensor_size=AP_GYM_SENSOR, step_limit=AP_GYM_STEPS)


def _ap_gym_actions(batch: int, steps: int, num_classes: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        {
            "action": action["location"],
            "prediction": rng.standard_normal((batch, num_classes)).astype(np.float32),
        }
        for action in draw_actions(batch, steps, num_classes)
    ]


def ap_gym_vector(case: Case, plan: Plan) -> dict[str, Any]:
    """Lane-steps a second of ap_gym's vector environment for MNIST, stepped as its examples do."""
    ap_gym, config = _ap_gym_config(case, plan)
    envs = ap_gym.make_vec("MNIST-v0", num_envs=case.batch, image_perception_config=config)
    actions = _ap_gym_actions(case.batch, AP_GYM_STEPS + 1, config.dataset.num_classes)
    envs.reset(seed=0)
    try:
        return time_steps(envs, actions, case, plan)
    finally:
        envs.close()


def ap_gym_single(case: Case, plan: Plan) -> dict[str, Any]:
    """Steps a second of ap_gym's single environment for MNIST, a reset after each episode."""
    ap_gym, config = _ap_gym_config(case, plan)
    env = ap_gym.make("MNIST-v0", image_perception_config=config)
    actions = _ap_gym_actions(1, AP_GYM_STEPS, config.dataset.num_classes)
    actions = [{key: value[0] for key, value in action.items()} for action in actions]
    env.reset(seed=0)

    def play() -> None:
        for action in actions:
            env.step(action)
        env.reset()

    try:
        return {**measure(play, len(actions), "steps", plan.settings), "steps": len(actions)}
    finally:
        env.close()


# ----------------------------------------------------------------------------------------------------------- Gymnasium


def gymnasium_vector(case: Case, plan: Plan) -> dict[str, Any]:
    """Lane-steps a second of SyncVectorEnv or AsyncVectorEnv, the variant, over GlimpseEnv, with their defaults."""
    config = case.config(plan)
    makers: list[Callable[[], GlimpseEnv]] = [lambda: GlimpseEnv(config)] * case.batch
    kinds = {"sync": gym.vector.SyncVectorEnv, "async": gym.vector.AsyncVectorEnv}
    envs = kinds[case.variant](makers)
    try:
        num_classes = int(envs.single_action_space["label"].n)
        actions = draw_actions(case.batch, config.num_glimpses + 1, num_classes)
        envs.reset(seed=0)
        return time_steps(envs, actions, case, plan)
    finally:
        envs.close()


# ------------------------------------------------------------------------------------------- stand-in: sensor, training


def crop_loop(canvases: Tensor, locations: Tensor, config: GlimpseConfig, *, python_bounds: bool = False) -> Tensor:
    """Glimpses by cropping image after image and pooling: what `take_glimpses` gives, up to rounding.

    Args:
        canvases: float32 (N, C, S, S) in [0, 1].
        locations: float32 (N, 2) in [-1, 1].
        config: the sensor.
        python_bounds: crop at Python's integers, which is quicker than at elements of tensors, the common way.

    Returns:
        float32 (N, K * C, P, P).
    """
    patches = []
    pixels = (locations + 1.0) * (config.canvas_size / 2)
    for scale in range(config.num_scales):
        side = config.patch_side(scale)
        # From the pixel corner (even sides) or the pixel (odd ones) that is nearest the location.
        centre = (pixels.round() if side % 2 == 0 else pixels.floor()).long()
        before, after = side // 2, side - side // 2
        padded = F.pad(canvases, (before, after, before, after))
        bounds: Any = centre.tolist() if python_bounds else centre
        crops = [image[:, y : y + side, x : x + side] for image, (x, y) in zip(padded, bounds, strict=True)]
        patches.append(F.avg_pool2d(torch.stack(crops), config.block_side(scale)))
    return torch.cat(patches, dim=1)


def crops(case: Case, plan: Plan) -> dict[str, Any]:
    """Glimpses a second of `crop_loop`; variant "tensor bounds" or "python bounds"."""
    config = case.config(plan)
    data = load_dataset(config.dataset, config.split, config.data_root)
    dataset = SceneDataset(data.images, data.labels, config)
    canvases = torch.stack([dataset[i % len(dataset)][0] for i in range(case.batch)]).to(case.device)
    where = [torch.tensor(a["location"], device=case.device) for a in draw_actions(case.batch, config.num_glimpses, 2)]

    def play() -> None:
        for locations in where:
            crop_loop(canvases, locations, config, python_bounds=case.variant == "python bounds")

    return measure(play, case.batch * len(where), "glimpses", plan.settings, synchronizer(case.device))


class SceneDataset(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Scenes made one at a time as they are asked for, as datasets for torch's DataLoader usually are.

    Args:
        images: uint8 (M, C, H, W).
        labels: int64 (M,).
        config: canvas and clutter. Composition "add".
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, config: GlimpseConfig) -> None:
        self.images, self.labels, self.config = torch.tensor(images), labels.tolist(), config

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """A fresh scene of an image, float32 (C, S, S) in [0, 1], and its label."""
        size, piece = self.config.canvas_size, self.config.clutter_size
        image = self.images[index].float() / 255
        channels, height, width = image.shape
        if size == height == width and not self.config.num_clutter:
            return image, self.labels[index]
        canvas = torch.zeros(channels, size, size)
        for _ in range(self.config.num_clutter):
            source = self.images[_random(len(self))]
            top, left = _random(height - piece + 1), _random(width - piece + 1)
            y, x = _random(size - piece + 1), _random(size - piece + 1)
            canvas[:, y : y + piece, x : x + piece] += source[:, top : top + piece, left : left + piece].float() / 255
        y, x = _random(size - height + 1), _random(size - width + 1)
        canvas[:, y : y + height, x : x + width] += image
        return canvas.clamp(max=1), self.labels[index]


def _random(bound: int) -> int:
    return int(torch.randint(bound, ()))


class PlainModel(nn.Module):
    """A Recurrent Attention Model as the paper draws it, cropping as it goes: 128 + 128 units, a core of 256."""

    def __init__(self, config: GlimpseConfig, channels: int, num_classes: int, std: float, python_bounds: bool) -> None:
        super().__init__()
        self.config, self.std, self.python_bounds = config, std, python_bounds
        self.what = nn.Linear(config.num_scales * channels * config.patch_size**2, 128)
        self.what_out = nn.Linear(128, 256)
        self.where = nn.Linear(2, 128)
        self.where_out = nn.Linear(128, 256)
        self.core_in = nn.Linear(256, 256)
        self.core = nn.Linear(256, 256)
        self.locator = nn.Linear(256, 2)
        self.critic = nn.Linear(256, 1)
        self.classifier = nn.Linear(256, num_classes)

    def forward(self, canvases: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Canvases (N, C, S, S) -> class log-probabilities (N, L), those of the moves (N, T), baselines (N, T)."""
        location = torch.rand(len(canvases), 2, device=canvases.device) * 2 - 1
        hidden = canvases.new_zeros(len(canvases), 256)
        moves, baselines = [], []
        for _ in range(self.config.num_glimpses):
            glimpse = crop_loop(canvases, location, self.config, python_bounds=self.python_bounds).flatten(1)
            seen = self.what_out(self.what(glimpse).relu()) + self.where_out(self.where(location).relu())
            hidden = (self.core_in(seen.relu()) + self.core(hidden)).relu()
            policy = torch.distributions.Normal(self.locator(hidden).tanh(), self.std)
            location = policy.sample().clamp(-1, 1)
            moves.append(policy.log_prob(location).sum(1))
            baselines.append(self.critic(hidden).squeeze(1))
        return self.classifier(hidden).log_softmax(1), torch.stack(moves, 1), torch.stack(baselines, 1)


class PlainTraining:
    """A plain training loop: DataLoader, batch 32, Adam, losses read back after each batch.

    Stands in for bentrevett/recurrent-attention-model (PyTorch, 2020), whose sizes and settings it has.
    """

    def __init__(self, config: GlimpseConfig, device: str, batch: int, python_bounds: bool) -> None:
        data = load_dataset(config.dataset, config.split, config.data_root)
        torch.manual_seed(0)
        self.device = device
        self.loader = torch.utils.data.DataLoader(
            SceneDataset(data.images, data.labels, config), batch_size=batch, shuffle=True, drop_last=True
        )
        self.batches = iter(self.loader)
        self.model = PlainModel(config, data.images.shape[1], data.num_classes, 0.17, python_bounds).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=3e-4)

    def update(self) -> tuple[float, ...]:
        """One batch; returns the three losses and the accuracy."""
        batch = next(self.batches, None)
        if batch is None:
            self.batches = iter(self.loader)
            batch = next(self.batches)
        canvases, labels = (tensor.to(self.device) for tensor in batch)
        self.optimizer.zero_grad()
        answers, moves, baselines = self.model(canvases)
        reward = (answers.argmax(1) == labels).float()[:, None].expand_as(moves)
        classification = F.nll_loss(answers, labels)
        baseline = F.mse_loss(baselines, reward)
        reinforce = (-moves * (reward - baselines.detach())).sum(1).mean()
        (classification + baseline + reinforce).backward()
        self.optimizer.step()
        return classification.item(), baseline.item(), reinforce.item(), reward[:, 0].mean().item()
