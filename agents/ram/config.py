"""RamConfig: all that defines a training run of the Recurrent Attention Model, and the presets per task."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Interval

from ..training.config import NativeConfig, preset_fields
from ..training.schema import NotNegative, Positive, Share, Units

Locator = Literal["learned", "random", "centre", "scan", "oracle"]
LocationReward = Literal["answer", "every-answer", "every-likelihood", "likelihood-gain"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RamConfig(NativeConfig):
    """One training run. Together with the package versions it determines every number of the run.

    Raises:
        ValueError: a field has a wrong type or value; the message names the field, what it must be and what came.
    """

    added: ClassVar[dict[str, Any]] = {"glimpse_network": "mlp"}

    rollouts: Annotated[int, Interval(ge=1, le=1024)] = 1
    """Rollouts M of each scene in one update; an update sees batch_size * M episodes."""

    glimpse_network: Literal["mlp", "conv", "custom"] = "mlp"
    """What encodes a glimpse and its place: the paper's fully connected layers, or three convolutions; see
    agents/networks.py. "custom" is a module of your own, passed to `train` in Python."""
    core: Literal["rnn", "lstm", "gru", "custom"] = "rnn"
    """Core network: the paper's ReLU RNN for classification, an LSTM or a GRU. "custom" as above."""
    hidden_size: Units = 256
    """Units of the core and of the glimpse network's output."""
    glimpse_hidden_size: Units = 128
    """Units that encode where a glimpse was taken; in the fully connected network, as many encode what it shows."""
    locator_hidden_size: Annotated[int, Interval(ge=0, le=8192)] = 128
    """Units of a hidden layer in the location network, before a tanh; 0 is the paper's, one linear layer."""
    locator: Locator = "learned"
    """Who chooses locations: the learned location network, or a script, for an equally trained control."""

    location_std: Positive = 0.1
    """Standard deviation of the location policy, in units of [-1, 1], at the beginning."""
    final_location_std: Positive | None = None
    """The same at the end, reached linearly; None keeps it constant."""
    baseline: Literal["learned", "leave-one-out"] = "learned"
    """What REINFORCE subtracts from the reward: a learned value per step (trained beside scripted locators too, where
    nothing reads it), or the mean of the scene's other rollouts."""
    reinforce_weight: NotNegative = 0.1
    """Weight of the REINFORCE term (a mean over glimpses and episodes) beside cross-entropy."""
    baseline_weight: NotNegative = 1.0
    """Weight of the learned baseline's squared error."""
    early_weight: NotNegative = 0.0
    """Weight of the mean cross-entropy of the answers after all glimpses but the last; 0 trains the last answer alone,
    as the paper does."""
    location_reward: LocationReward = "answer"
    """What REINFORCE wants more of: right last answers, as the paper; from each look on, the share of answers that are
    right, or the answers' mean log-likelihood; or what that mean gains on the answer before the look."""
    location_discount: Share = 1.0
    """Weight of each later answer relative to the one before it, in what a look is worth by all answers after it: 1
    counts them alike, 0 the next one alone."""
    locator_gradient_into_core: bool = False
    """Let the REINFORCE term train the core and the glimpse network too, not the location network alone."""

    weight_average: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Decay per update of an exponential average of the weights, which is what is evaluated; 0 turns it off."""

    backpropagation: Literal["auto", "batched", "autograd"] = "auto"
    """How gradients go back through the core and the glimpse network: written out, with one product a weight for all
    glimpses, or by autograd, glimpse by glimpse. Changes no number beyond rounding. "auto" is "batched" where the
    networks are "mlp" and "rnn" or "lstm", the only ones that it knows, and "autograd" for all others."""
    compile: bool = False
    """Let torch.compile fuse what autograd goes through: the losses and heads, and with --backpropagation autograd the
    whole network. Changes no number beyond rounding."""
    cuda_graph: bool = False
    """Record the rollout-and-update step as one CUDA graph and replay it; changes no number beyond rounding. Needs
    device "cuda"; several processes train without it."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the glimpse network, the core and the location network's hidden layer compute in, when training and when
    measured; weights, the last layers, log-probabilities and losses are float32 in any case, and so is, when training
    with backpropagation "batched" alone, the layer that sees the location."""

    shares_batches = True

    @property
    def agent(self) -> str:
        """Name of the agent."""
        return "ram"

    @property
    def episodes_per_scene(self) -> int:
        """Episodes that an update plays of each scene."""
        return self.rollouts

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.baseline == "leave-one-out" and self.rollouts < 2:
            raise ValueError(f"baseline 'leave-one-out' needs rollouts of at least 2, got {self.rollouts}")
        if self.backpropagation == "batched" and not self.has_papers_networks:
            networks = f"glimpse_network {self.glimpse_network!r} with core {self.core!r}"
            raise ValueError(f"backpropagation must be 'auto' or 'autograd' for {networks}, got 'batched'")

    def planned_fields(self) -> list[str]:
        """Names of the fields by which an epoch depends on the number of epochs."""
        is_constant = self.final_location_std in (None, self.location_std)
        return super().planned_fields() + ([] if is_constant else ["final_location_std"])

    @property
    def has_papers_networks(self) -> bool:
        """Whether it sees and remembers with the networks of the paper, which are written out for speed too."""
        return self.glimpse_network == "mlp" and self.core in ("rnn", "lstm")

    def resolve(self) -> Self:
        """The configuration with everything that is "auto" chosen, as a run stores it."""
        if self.backpropagation != "auto":
            return self
        return dataclasses.replace(self, backpropagation="batched" if self.has_papers_networks else "autograd")

    @property
    def needs_early_answers(self) -> bool:
        """Whether the answers after earlier glimpses are part of the loss."""
        return self.early_weight > 0 or self.location_reward != "answer"


def location_std(config: RamConfig, done: float) -> float:
    """The location policy's standard deviation when a share `done` of all updates is done."""
    final = config.location_std if config.final_location_std is None else config.final_location_std
    return config.location_std + done * (final - config.location_std)


_LARGE_BATCH = {"batch_size": 1024, "learning_rate": 0.004, "distorted_copies": 16, "validate_every": 10}

_FOVEATED = {
    **_LARGE_BATCH,
    "epochs": 240,
    "location_std": 0.25,
    "final_location_std": 0.05,
    "early_weight": 1.0,
    "location_reward": "likelihood-gain",
    "location_discount": 0.0,
    "reinforce_weight": 3.0,
    "locator_gradient_into_core": True,
}

_CLUTTERED = {**_FOVEATED, "epochs": 570, "batch_size": 2048, "learning_rate": 0.005}

_TASKS: dict[str, dict[str, Any]] = {
    "digits": {
        "epochs": 100,
        "batch_size": 64,
        "location_std": 0.2,
        "final_location_std": 0.05,
        "weight_decay": 0.2,
        "validate_every": 4,
    },
    "mnist-28": {
        **_LARGE_BATCH,
        "epochs": 700,
        "location_std": 0.2,
        "final_location_std": 0.05,
        "weight_decay": 0.2,
    },
    "translated-60": _FOVEATED,
    "cluttered-60": _CLUTTERED,
    "cluttered-100": _CLUTTERED,
    "cluttered-100x8": _CLUTTERED,
}

PRESETS = {"ram": _TASKS}
"""What each task changes in RamConfig: the best values tried for the paper's core, see RESULTS.md."""

CONFIG = RamConfig


def preset(task: str, agent: str = "ram") -> RamConfig:
    """The configuration that `python -m agents train ram --task TASK` starts from; see `agents.registry.Agent`."""
    return RamConfig(task=task, **preset_fields(PRESETS[agent], task))
