"""An agent of your own: one environment, then 4,096 at once. Both play at random here.

python -m examples.random_agent
"""

import time

import gymnasium as gym

import ram_gym

gym.register_envs(ram_gym)


def play_one() -> bool:
    """One episode in one environment; True if the answer was right."""
    env = gym.make("RamGym/Digits-v0")
    env.action_space.seed(0)
    observation, info = env.reset(seed=0)
    terminated = False
    while not terminated:
        action = env.action_space.sample()  # {"location": (x, y) in [-1, 1], "label": 0 to 9}
        observation, reward, terminated, truncated, info = env.step(action)
    return info["is_success"]


def play_many(num_envs: int = 4096, steps: int = 60) -> float:
    """Many episodes in a vector environment; the share of right answers."""
    import torch

    envs = gym.make_vec("RamGym/Digits-v0", num_envs=num_envs, output="torch", autoreset_mode="SameStep")
    envs.reset(seed=0)
    episodes = right = 0
    for _ in range(steps):
        location = torch.rand(num_envs, 2) * 2 - 1
        label = torch.randint(10, (num_envs,))
        observation, reward, terminated, truncated, info = envs.step({"location": location, "label": label})
        episodes += int(terminated.sum())
        right += int(reward.sum())
    return right / episodes


if __name__ == "__main__":
    print("right answer" if play_one() else "wrong answer")
    start = time.perf_counter()
    print(f"{100 * play_many():.1f}% right by chance, {4096 * 60 / (time.perf_counter() - start):,.0f} steps/s")
