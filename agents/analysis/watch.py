"""`python -m agents watch`: a run's episodes as a GIF."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import tyro

from ram_gym import save_gif
from ram_gym.files import printable

from ..registry import load_run
from ..training.environment import make_env
from .compare import Split


def watch(
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")],
    gif: Path,
    episodes: int = 6,
    first: int = 0,
    split: Split = "test",
    data_root: str | None = None,
    other_data: bool = False,
    milliseconds: int = 450,
) -> None:
    """Draw a run's episodes as a GIF: canvas, locations, glimpses and answers.

    Args:
        run: The run's folder, or pretrained:NAME.
        gif: File to write.
        episodes: Number of scenes to show, one after the other.
        first: Index of the first scene in the split.
        split: Split of the scenes.
        data_root: Folder with the datasets; default: the one that the run was trained with.
        other_data: Allow an environment or images other than those that the run learned from.
        milliseconds: Time that each glimpse is shown for.
    """
    trained = load_run(run, "cpu", data_root)
    env_config = trained.config.env_config.replace(split=split)
    is_other = trained.is_other_data(env_config, other_data)
    env = make_env(env_config, "cpu", max(episodes, 1))
    policy = trained.make_policy(env, None, str(run))
    if episodes < 1 or not 0 <= first <= env.num_images - episodes:
        raise ValueError(f"first must lie in 0 to {env.num_images} - episodes, got first {first}, episodes {episodes}")
    if not 20 <= milliseconds <= 60_000:
        raise ValueError(f"milliseconds must lie in 20 to 60000, got {milliseconds}")
    if gif.suffix.lower() != ".gif":
        raise ValueError(f"gif must be a file name that ends in .gif, got {gif}")
    env.render_mode = "rgb_array"
    with torch.inference_mode():
        observation, _ = env.reset(options={"index": torch.arange(first, first + episodes)})
        frames, state = [env.render()], None
        for _ in range(env.config.num_glimpses):
            action, state = policy.act(observation, state)
            action.pop("log_probabilities")
            observation, _, _, _, _ = env.step(action)
            frames.append(env.render())
    # The answer is shown for two more frames.
    order = [frame[lane] for lane in range(episodes) for frame in (*frames, frames[-1], frames[-1]) if frame]
    save_gif(order, gif, milliseconds, milliseconds)
    other = ", on other data than it learned from" * is_other
    print(printable(f"{gif}: {episodes} episode{'s' if episodes > 1 else ''}{other}"))
