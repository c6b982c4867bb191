"""Stepping: the vector environment, the single one, the sensor alone, scene making alone, and the limit beside them.

Every environment, peers included, gets random actions that were drawn before the clock starts: sampling a space for
thousands of lanes would take longer than stepping. A pass is a whole cycle of episodes, the reset included: under
NEXT_STEP the steps of an episode and the one that begins the next, under SAME_STEP its steps alone. A lane-step is one
lane's share of one call of `step`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from benchmarks.cases import Case, Plan
from benchmarks.timing import measure, synchronizer
from ram_gym import GlimpseConfig, GlimpseEnv, GlimpseVectorEnv, load_dataset, take_glimpses

Actions = list[dict[str, Any]]


def draw_actions(batch: int, steps: int, num_classes: int) -> Actions:
    """Random actions for a vector environment of `batch` lanes, as arrays: one a step."""
    rng = np.random.default_rng(0)
    return [
        {
            "location": rng.uniform(-1, 1, (batch, 2)).astype(np.float32),
            "label": rng.integers(0, num_classes, batch),
        }
        for _ in range(steps)
    ]


def vector(case: Case, plan: Plan) -> dict[str, Any]:
    """Lane-steps a second of GlimpseVectorEnv; variant: autoreset mode and output."""
    mode, output = case.variant.split()
    config = case.config(plan)
    envs = GlimpseVectorEnv(
        case.batch,
        config,
        device=case.device,
        output=output,  # type: ignore[arg-type]
        autoreset_mode=mode,
    )
    steps = config.num_glimpses + (mode == "NextStep")
    actions = draw_actions(case.batch, steps, envs.num_classes)
    if output == "torch":
        actions = [{key: torch.tensor(value, device=case.device) for key, value in a.items()} for a in actions]
    envs.reset(seed=0)
    return time_steps(envs, actions, case, plan)


def time_steps(envs: gym.vector.VectorEnv[Any, Any, Any], actions: Actions, case: Case, plan: Plan) -> dict[str, Any]:
    """Times a vector environment that was just reset; `actions` are those of a whole cycle."""

    def play() -> None:
        for action in actions:
            envs.step(action)

    work = case.batch * len(actions)
    return {**measure(play, work, "lane-steps", plan.settings, synchronizer(case.device)), "steps": len(actions)}


def single(case: Case, plan: Plan) -> dict[str, Any]:
    """Steps a second of GlimpseEnv, a reset after each episode."""
    env = GlimpseEnv(case.config(plan))
    actions = [
        {"location": action["location"][0], "label": int(action["label"][0])}
        for action in draw_actions(1, env.config.num_glimpses, env.num_classes)
    ]
    env.reset(seed=0)

    def play() -> None:
        for action in actions:
            env.step(action)
        env.reset()

    return {**measure(play, len(actions), "steps", plan.settings), "steps": len(actions)}


def sensor(case: Case, plan: Plan) -> dict[str, Any]:
    """Glimpses a second; variant "prepared": of scenes that are looked at again, "fresh": each scene once, checked."""
    config = case.config(plan)
    canvases = _scene_maker(case, plan)()
    where = [torch.tensor(a["location"], device=case.device) for a in draw_actions(case.batch, config.num_glimpses, 2)]
    look = _looker(canvases, config, case.variant)

    def play() -> None:
        for locations in where:
            look(locations)

    work = case.batch * len(where)
    return measure(play, work, "glimpses", plan.settings, synchronizer(case.device))


def scenes(case: Case, plan: Plan) -> dict[str, Any]:
    """Scenes made a second: places drawn and canvases composed, nothing looked at."""
    return measure(_scene_maker(case, plan), case.batch, "scenes", plan.settings, synchronizer(case.device))


def limit(case: Case, plan: Plan) -> dict[str, Any]:
    """Lane-steps a second if a step were but a copy of the bytes that it must read and write.

    It must read an action, and one value of the scene for each value of the glimpse (one byte in the finest patch, two
    in the coarser ones, whose values are sums); it must write the glimpse and its location in float32, the reward and
    two flags. A copy of half as many bytes reads and writes as many.
    """
    config = case.config(plan)
    channels = load_dataset(config).images.shape[1]
    values = channels * config.patch_size**2
    read = (4 + 4 + 8) + values * (1 + 2 * (config.num_scales - 1))
    write = 4 * values * config.num_scales + (4 + 4) + 4 + 2
    half = (read + write) // 2
    source = torch.ones(case.batch * half, dtype=torch.uint8, device=case.device)
    target = torch.zeros_like(source)

    def play() -> None:
        for _ in range(config.num_glimpses):
            target.copy_(source)

    work = case.batch * config.num_glimpses
    found = measure(play, work, "lane-steps", plan.settings, synchronizer(case.device))
    return {**found, "bytes_of_step": read + write}


# The two places that know the inside of ram_gym: what the environment does when an episode begins (unless scenes are
# images and nothing else: a CPU then copies what it made of each image once), and when it looks.


def _scene_maker(case: Case, plan: Plan) -> Callable[[], torch.Tensor]:
    """A function that makes the canvases of a batch of scenes, other ones each time. uint8 (N, C, S, S)."""
    from ram_gym.pyramids import PIXELS_AT_ONCE, blocks
    from ram_gym.scenes import Placement, compose, place, scene_keys

    config = case.config(plan)
    images = torch.tensor(load_dataset(config).images, device=case.device)
    # As many at once as the vector environment makes.
    parts = blocks(case.batch, images.shape[1] * config.canvas_size**2, PIXELS_AT_ONCE, images)
    indices = torch.arange(case.batch, device=case.device) % len(images)
    seeds = torch.zeros_like(indices)

    def make() -> torch.Tensor:
        nonlocal seeds
        seeds = seeds + 1
        placement = place(indices, scene_keys(indices, seeds, config.split), tuple(images.shape), config)
        made = [compose(images, indices[p], Placement(*(value[p] for value in placement)), config) for p in parts]
        return made[0] if len(made) == 1 else torch.cat(made)

    return make


def _looker(canvases: torch.Tensor, config: GlimpseConfig, variant: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from locations (N, 2) to the glimpses of canvases."""
    if variant == "fresh":
        return lambda locations: take_glimpses(canvases, locations, config)
    from ram_gym.retina import Retina

    retina = Retina(config, canvases.shape[1], canvases.device)
    retina.show(canvases)
    return retina.look
