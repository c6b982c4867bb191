"""Your policy in a fair comparison: a function, a torch module and a Stable-Baselines3 model on the same test scenes.

None of them is trained here, so all are right about one time in ten.

    python -m examples.plug_in_your_policy
"""

import torch

from ram_gym import ComparisonTable, GlimpseVectorEnv, as_policy, evaluate_all, get_task


def stay_and_answer_seven(observation):
    """A function of the observation; one that remembers takes (observation, state) and returns (action, state)."""
    location = observation["location"]  # float32 (N, 2) in [-1, 1]
    return {"location": location, "label": torch.full(location.shape[:1], 7, device=location.device)}


class Recurrent(torch.nn.Module):
    """A module with a memory: the state is None at the first step, then what it returned."""

    def __init__(self, values: int, num_classes: int) -> None:
        super().__init__()
        self.core = torch.nn.GRUCell(values + 2, 64)
        self.where, self.what = torch.nn.Linear(64, 2), torch.nn.Linear(64, num_classes)

    def forward(self, observation, state):
        seen = torch.cat((observation["glimpse"].flatten(1), observation["location"]), dim=1)
        state = self.core(seen, state)
        log_probabilities = self.what(state).log_softmax(-1)  # optional; protocol "average-10" needs them
        action = {"location": self.where(state).tanh(), "label": log_probabilities.argmax(-1)}
        return {**action, "log_probabilities": log_probabilities}, state


def make_sb3_model():
    """Any Stable-Baselines3 model whose actions have a form that ram_gym.wrappers gives them."""
    import gymnasium as gym
    from sb3_contrib import RecurrentPPO

    from ram_gym.wrappers import MultiDiscreteAction

    return RecurrentPPO("MultiInputLstmPolicy", MultiDiscreteAction(gym.make("RamGym/Digits-v0")), seed=0)


def compare_mine(sb3_model=None) -> ComparisonTable:
    config = get_task("digits").config
    env = GlimpseVectorEnv(358, config, split="test", output="torch", autoreset_mode="Disabled")
    torch.manual_seed(0)
    module = Recurrent(config.num_scales * config.patch_size**2, env.num_classes).eval()
    policies = [
        as_policy(stay_and_answer_seven),
        as_policy(module, name="my recurrent module", answers_early=True),
    ]
    if sb3_model is not None:
        policies.append(as_policy(sb3_model, name="my SB3 model", env=env))
    return evaluate_all(policies, {"digits": env})


if __name__ == "__main__":
    try:
        table = compare_mine(make_sb3_model())
    except ImportError as error:
        print(f"without a Stable-Baselines3 model: {error}")
        table = compare_mine()
    print(table.to_text())
