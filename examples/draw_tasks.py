"""Draws a picture of each task for the README: a hidden scene, a path of looks, and the last glimpse.

python -m examples.draw_tasks [FOLDER] [TASK ...]      MNIST tasks read $RAM_GYM_DATA
"""

import sys
from pathlib import Path

import gymnasium as gym
from PIL import Image

import ram_gym

gym.register_envs(ram_gym)

PATH = ((-0.5, -0.4), (0.1, -0.5), (0.3, 0.2), (-0.1, 0.3))
WIDTH = 220


def draw_task(name: str, folder: Path) -> Path:
    """Writes FOLDER/NAME.png: test scene 4 of a task."""
    env = gym.make(ram_gym.get_task(name).env_id, split="test", render_mode="rgb_array")
    env.reset(options={"index": 4, "location": PATH[0]})
    for location in PATH[1:]:
        env.step({"location": location, "label": 0})
    picture = Image.fromarray(env.render())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    picture.resize((WIDTH, round(WIDTH * picture.height / picture.width)), Image.Resampling.LANCZOS).save(path)
    return path


if __name__ == "__main__":
    target = Path(sys.argv[1] if sys.argv[1:] else "docs/tasks")
    for task in sys.argv[2:] or ram_gym.TASKS:
        print(draw_task(task, target))
