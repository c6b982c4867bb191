"""Stable-Baselines3's RecurrentPPO on a glimpse task: learn, measure on the fixed test scenes, save and load.

This short it learns little; `python -m agents train sb3-ppo-lstm` learns more. Needs `pip install 'ram_gym[sb3]'`.

    python -m examples.sb3_recurrent_ppo [STEPS]
"""

import sys
import tempfile
from pathlib import Path

from sb3_contrib import RecurrentPPO

from ram_gym import GlimpseVectorEnv, as_policy, evaluate, get_task
from ram_gym.adapters.sb3 import GlimpseVecEnv
from ram_gym.wrappers import VectorMultiDiscreteAction

CONFIG = get_task("digits").config


def learn(steps: int, num_envs: int = 64) -> RecurrentPPO:
    """The vector environment as a VecEnv: one process, one batch, no loop over environments."""
    envs = GlimpseVectorEnv(num_envs, CONFIG, autoreset_mode="SameStep")
    env = GlimpseVecEnv(VectorMultiDiscreteAction(envs, grid_size=7))
    length = CONFIG.num_glimpses  # a rollout is one episode in every lane
    batch = num_envs * length // 2
    model = RecurrentPPO(
        "MultiInputLstmPolicy", env, n_steps=length, batch_size=batch, n_epochs=4, gamma=1.0, seed=0, device="cpu"
    )
    return model.learn(steps)


def measure(model: RecurrentPPO) -> float:
    """Error in percent on all test scenes, which are the same for every policy."""
    env = GlimpseVectorEnv(358, CONFIG, split="test", output="torch", autoreset_mode="Disabled")
    return evaluate(as_policy(model, env=env), env, task="digits").error_percent


def main(folder: Path, steps: int) -> tuple[float, float]:
    model = learn(steps)
    model.save(folder / "model.zip")
    again = RecurrentPPO.load(folder / "model.zip", device="cpu")
    return measure(model), measure(again)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        learned, loaded = main(Path(folder), int(sys.argv[1]) if sys.argv[1:] else 20_000)
    print(f"error {learned:.1f}% on the test scenes, after loading {loaded:.1f}%; guessing errs about 90%")
