"""Policies compared on the same scenes: what more looks, and looks at other places, are worth to a linear classifier.

    python -m examples.compare_policies [REPORT.html]

Writes one HTML file, to be opened in a browser: tables, plots, and episodes side by side.
"""

import sys
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression

from ram_gym import ComparisonTable, GlimpseVectorEnv, evaluate_all, write_report

PLACES = {
    "centre": [(0.0, 0.0)] * 5,
    "corners": [(-0.4, -0.4), (0.4, 0.4), (-0.4, 0.4), (0.4, -0.4), (0.0, 0.0)],
    "down the middle": [(0.0, -0.6), (0.0, -0.3), (0.0, 0.0), (0.0, 0.3), (0.0, 0.6)],
}


class LinearPolicy:
    """Looks at the same places in every scene, and answers after each with a classifier of all it has seen so far."""

    answers_early = True

    def __init__(self, name: str, train_env: GlimpseVectorEnv) -> None:
        self.name, self.path, self.classifiers = name, PLACES[name], []
        index = torch.arange(train_env.num_envs)
        observation, _ = train_env.reset(options={"index": index})
        seen = None
        for place in [*self.path, (0.0, 0.0)]:
            seen = self.add(observation, seen)
            self.classifiers.append(LogisticRegression(max_iter=60, tol=0.01).fit(seen.numpy(), train_env.labels))
            action = {"location": torch.tensor(place).expand(len(index), 2), "label": index * 0}
            observation, *_ = train_env.step(action)

    @staticmethod
    def add(observation, seen):
        glimpse = observation["glimpse"].flatten(1).cpu()
        return glimpse if seen is None else torch.cat((seen, glimpse), dim=1)

    def act(self, observation, state):
        num_taken, seen = state or (0, None)
        seen = self.add(observation, seen)
        label = self.classifiers[num_taken].predict(seen.numpy())
        place = self.path[min(num_taken, len(self.path) - 1)]
        return {"location": torch.tensor(place).expand(len(label), 2), "label": label}, (num_taken + 1, seen)


def compare_places(report: Path) -> ComparisonTable:
    options = {"dataset": "digits", "output": "torch", "autoreset_mode": "Disabled"}
    train_env = GlimpseVectorEnv(1080, split="train", scene_seed=0, **options)
    envs = {"digits": GlimpseVectorEnv(358, split="test", **options)}
    policies = [LinearPolicy(name, train_env) for name in PLACES]
    table = evaluate_all(policies, envs, reference="centre")
    write_report(report, table, envs=envs, command="python -m examples.compare_policies")
    return table


if __name__ == "__main__":
    path = Path(sys.argv[1] if sys.argv[1:] else "runs/comparison.html")
    print(compare_places(path).to_text())
    print(f"written: {path}")
