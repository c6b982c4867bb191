from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from agents.ram.config import preset
from agents.ram.training import RamLearner
from agents.training import distortion
from agents.training.loop import Trainer
from ram_gym import load_dataset


def test_a_copy_shows_what_scipy_finds_at_the_moved_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distortion, "BEND", 0.0)
    images = torch.randint(0, 256, (6, 2, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found = distortion.distort(images, torch.Generator().manual_seed(3))
    draws = (torch.rand(6, 6, generator=torch.Generator().manual_seed(3)) * 2 - 1).double().numpy()
    y, x = np.mgrid[:28, :28] - 13.5
    for i in range(6):
        turn, stretch_x, stretch_y, shear, shift_x, shift_y = draws[:, i]
        angle = math.radians(10) * turn
        # First stretched and sheared, then turned, then shifted; but that turning y into x leaves its stretch out.
        u, v = x * (1 + 0.12 * stretch_x), y * (1 + 0.12 * stretch_y)
        slanted = y * 0.15 * shear
        column = math.cos(angle) * (u + slanted) - math.sin(angle) * y + 1.5 * shift_x + 13.5
        row = math.sin(angle) * (u + slanted) + math.cos(angle) * v + 1.5 * shift_y + 13.5
        for channel in range(2):
            image = np.pad(images[i, channel].double().numpy(), 1)
            expected = ndimage.map_coordinates(image, [row + 1, column + 1], order=1, mode="constant")
            assert np.abs(found[i, channel].numpy() - expected).max() < 0.52  # rounded


def test_digits_bend_a_little_and_each_copy_in_its_own_way() -> None:
    images = load_dataset("digits", "train").images[:300]
    found = distortion.with_distorted_copies(images, 2, seed=5)
    assert found.shape == (900, *images.shape[1:])
    assert np.array_equal(found[:300], images)
    for copy in (found[300:600], found[600:]):
        difference = np.abs(copy.astype(float) - images).mean(axis=(1, 2, 3)) / images.mean(axis=(1, 2, 3))
        assert 0.1 < np.median(difference) < 0.8
        ink = copy.mean(axis=(1, 2, 3)) / images.mean(axis=(1, 2, 3))
        assert 0.95 < ink.mean() < 1.1
    assert (found[300:600] != found[600:]).any(axis=(1, 2, 3)).all()
    assert np.array_equal(found, distortion.with_distorted_copies(images, 2, seed=5))
    assert not np.array_equal(found, distortion.with_distorted_copies(images, 2, seed=6))


def test_a_pass_shows_every_image_once_as_it_is_or_as_a_copy() -> None:
    config = dataclasses.replace(preset("digits"), batch_size=60, hidden_size=8, distorted_copies=3, epochs=5)
    trainer = Trainer(RamLearner, config)
    own = load_dataset("digits", "train")
    assert (trainer.env.num_images, trainer.updates_per_epoch) == (4 * 1080, 18)
    shown = []
    trainer._step = lambda index, *_: shown.append(index)  # type: ignore[method-assign]
    for _ in range(18):
        trainer.update()
    index = torch.cat(shown).numpy()
    assert sorted(index % 1080) == list(range(1080))
    assert min(np.bincount(index // 1080)) > 200
    trainer.env.reset(options={"index": torch.tensor(index[:60]), "scene_seed": 0})
    assert trainer.env.labels.tolist() == own.labels[index[:60] % 1080].tolist()
    # Without copies the images and their order are what they were.
    plain = Trainer(RamLearner, dataclasses.replace(config, distorted_copies=0))
    plain._step = lambda *_: None  # type: ignore[method-assign]
    plain.update()
    assert np.array_equal(plain.order.numpy(), index % 1080)
    assert plain.env.num_images == 1080
    plain.env.reset(options={"index": index[:60] % 1080, "scene_seed": 0})
    assert np.array_equal(plain.env.canvases.numpy(), own.images[index[:60] % 1080])
    with pytest.raises(ValueError, match="distorted_copies must be greater than or equal to 0, got -1"):
        dataclasses.replace(config, distorted_copies=-1)
