"""What ram_gym is measured beside, on the same machine in the same run.

`ap_gym` and Gymnasium's vector environments are the packages themselves. The crop loop and the training loop are
STAND-INS: our own code that does the work the way public PyTorch code for Recurrent Attention Models does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
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
    data = load_dataset(config)

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
        canvases: float32 (N, C, S, S); zeros lie around them.
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
    data = load_dataset(config)
    images = ArrayDataset(data.images, data.labels)
    canvases = compose([images[i % len(images)] for i in range(case.batch)], config, as_lists=True)[0].to(case.device)
    where = [torch.tensor(a["location"], device=case.device) for a in draw_actions(case.batch, config.num_glimpses, 2)]

    def play() -> None:
        for locations in where:
            crop_loop(canvases, locations, config, python_bounds=case.variant == "python bounds")

    return measure(play, case.batch * len(where), "glimpses", plan.settings, synchronizer(case.device))


class ArrayDataset(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Images that lie in memory as arrays: float32 (C, H, W) in [0, 1], and labels.

    Args:
        images: uint8 (M, C, H, W).
        labels: int64 (M,).
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = torch.tensor(images), labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index].float() / 255, self.labels[index]


class PictureDataset(ArrayDataset):
    """The same as torchvision's datasets give them: each a PIL image, which `ToTensor` and `Normalize` work on."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        from torchvision import transforms

        super().__init__(images, labels)
        mean, std = images.mean() / 255, images.std() / 255
        channels = images.shape[1]
        normalize = transforms.Normalize([mean] * channels, [std] * channels)
        self.transform = transforms.Compose([transforms.ToTensor(), normalize])

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = Image.fromarray(self.images[index].permute(1, 2, 0).squeeze(2).numpy())
        return self.transform(picture), self.labels[index]


def compose(batch: list[tuple[Tensor, int]], config: GlimpseConfig, *, as_lists: bool) -> tuple[Tensor, Tensor]:
    """Fresh scenes of images, piece after piece, as code that collates for torch's DataLoader does: sums, not clipped.

    Args:
        batch: images, float32 (C, H, W), and their labels; clutter is cut from them too.
        config: canvas and clutter.
        as_lists: read the places from lists, which is quicker than from elements of tensors, the common way.

    Returns:
        float32 (N, C, S, S) and int64 (N,).
    """
    images, labels = zip(*batch, strict=True)
    size, piece, pieces = config.canvas_size, config.clutter_size, config.num_clutter
    channels, height, width = images[0].shape
    if size == height == width and not pieces:
        return torch.stack(images), torch.tensor(labels)
    canvases = torch.zeros(len(images), channels, size, size)

    def draw(*shape: int, bound: int) -> Any:
        places = torch.randint(bound + 1, shape)
        return places.tolist() if as_lists else places

    cuts: Any = draw(len(images), pieces, 2, bound=min(height, width) - piece) if pieces else ()
    into: Any = draw(len(images), pieces, 2, bound=size - piece) if pieces else ()
    places = draw(len(images), 2, bound=size - max(height, width))
    for number, image in enumerate(images):
        canvas = canvases[number]
        for each in range(pieces):
            source = images[int(torch.randint(len(images), ()))]
            (x, y), (column, row) = cuts[number][each], into[number][each]
            canvas[:, row : row + piece, column : column + piece] += source[:, y : y + piece, x : x + piece]
        x, y = places[number]
        canvas[:, y : y + height, x : x + width] += image
    return canvases, torch.tensor(labels)


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

    Args:
        config: the scenes and the sensor.
        device: PyTorch device.
        batch: scenes in an update.
        is_quick: False does as that repository does, which reads pictures with torchvision and places and crops at
            elements of tensors; True spares all that.
    """

    def __init__(self, config: GlimpseConfig, device: str, batch: int, is_quick: bool) -> None:
        data = load_dataset(config)
        torch.manual_seed(0)
        self.device = device
        self.loader = torch.utils.data.DataLoader(
            (ArrayDataset if is_quick else PictureDataset)(data.images, data.labels),
            batch_size=batch,
            shuffle=True,
            drop_last=True,
            collate_fn=partial(compose, config=config, as_lists=is_quick),
        )
        self.batches = iter(self.loader)
        self.model = PlainModel(config, data.images.shape[1], data.num_classes, 0.17, is_quick).to(device)
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
