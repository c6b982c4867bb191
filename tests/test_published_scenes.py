"""Published scenes and glimpses keep their bits: hashes of what every task shows, on validation and test."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ram_gym import TASKS, GlimpseEnv, GlimpseVectorEnv, get_task

HASHES = Path(__file__).with_name("published_scenes.json")
"""A change of a number in this file is a change of what an id shows: a new version of the id."""

NUM_SCENES = 200


def digest(*arrays: np.ndarray) -> str:
    """SHA-256 of arrays' dtypes, shapes and bytes."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype.str} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def hashes_of(name: str, split: str, composition: str, data_root: str | None) -> dict[str, str]:
    """Of the first scenes of a split: the canvases; and the glimpses of a whole episode along a fixed path."""
    config = get_task(name).config.replace(split=split, composition=composition, data_root=data_root)
    envs = GlimpseVectorEnv(NUM_SCENES, config, output="torch", autoreset_mode="Disabled")
    observation, _ = envs.reset(options={"index": torch.arange(NUM_SCENES)})
    scenes = digest(envs.canvases.numpy(), envs.labels.numpy(), envs.digit_locations.numpy())
    seen = [observation["location"].numpy(), observation["glimpse"].numpy()]
    for step in range(1, config.num_glimpses):
        # Half-steps of a lattice that leaves the canvas, so that borders and both roundings are met.
        lane = torch.arange(NUM_SCENES)
        location = torch.stack((lane * 37 % 101 / 45 - 1.1, (lane * 53 + step * 29) % 97 / 43 - 1.1), 1)
        observation, *_ = envs.step({"location": location, "label": torch.zeros(NUM_SCENES, dtype=torch.int64)})
        seen += [observation["location"].numpy(), observation["glimpse"].numpy()]
    return {"scenes": scenes, "glimpses": digest(*seen)}


def cases() -> list[tuple[str, str, str]]:
    """(task, split, composition); the two compositions differ where there is clutter."""
    return [
        (name, split, composition)
        for name, task in TASKS.items()
        for split in ("validation", "test")
        for composition in (("add", "overwrite") if task.config.num_clutter else ("add",))
    ]


@pytest.mark.parametrize(
    ("name", "split", "composition"),
    [pytest.param(*case, marks=() if case[0] == "digits" else pytest.mark.mnist) for case in cases()],
)
def test_what_a_task_shows_is_what_was_published(
    name: str, split: str, composition: str, request: pytest.FixtureRequest
) -> None:
    root = None if name == "digits" else request.getfixturevalue("mnist_root")
    published = json.loads(HASHES.read_text())[f"{name} {split} {composition}"]
    assert hashes_of(name, split, composition, root) == published


def test_seeded_training_episodes_are_what_was_published() -> None:
    """What `reset(seed=...)` begins on the training split: index, placement and first location of three episodes."""
    env = GlimpseEnv(get_task("digits").config, canvas_size=40, num_clutter=3, num_scales=2)
    parts = []
    for number in range(3):
        observation, _ = env.reset(seed=17 if number == 0 else None)
        parts += [env.canvas, observation["location"], observation["glimpse"]]
    assert digest(*parts) == json.loads(HASHES.read_text())["digits train, seeded"]


def test_every_task_has_its_hashes() -> None:
    kept = {key.split()[0] for key in json.loads(HASHES.read_text())}
    assert kept == set(TASKS)
