"""Records a training step as a CUDA graph and replays it."""

from __future__ import annotations

from collections.abc import Callable

import torch

WARM_UP_RUNS = 3
"""Ordinary runs before the recording; in them libraries initialise and the optimizer creates its state."""


class GraphedStep:
    """Runs a step; after `WARM_UP_RUNS` runs it records the step as a CUDA graph, and replays the graph from then on.

    The step must take everything that changes between runs as tensor arguments, write its results to tensors that
    exist already, and never synchronise with the device.

    Args:
        step: the step; its arguments are tensors of the same shapes and dtypes in each run.
        generator: the CUDA generator that the step draws from. A replay draws the same numbers as an ordinary run.
    """

    def __init__(self, step: Callable[..., None], generator: torch.Generator) -> None:
        self.step, self.generator = step, generator
        self.stream = torch.cuda.Stream(generator.device)
        self.num_runs = 0
        self.inputs: tuple[torch.Tensor, ...] = ()  # the tensors from which the graph reads its arguments
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *arguments: torch.Tensor) -> None:
        """Runs the step once, in order with the other work of the current stream."""
        if self.num_runs < WARM_UP_RUNS:
            self.num_runs += 1
            current = torch.cuda.current_stream(self.generator.device)
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                self.step(*arguments)
            current.wait_stream(self.stream)
            return
        if self.graph is None:
            self.inputs = tuple(argument.clone() for argument in arguments)
            graph = torch.cuda.CUDAGraph()
            graph.register_generator_state(self.generator)
            with torch.cuda.graph(graph, stream=self.stream):
                self.step(*self.inputs)
            self.graph = graph
        for graph_input, argument in zip(self.inputs, arguments, strict=True):
            graph_input.copy_(argument)
        self.graph.replay()
