"""One CUDA graph out of a step that is run again and again."""

from __future__ import annotations

from collections.abc import Callable

import torch

WARM_UP_RUNS = 3
"""Runs before the recording: libraries set themselves up in them, and the optimizer makes its state."""


class GraphedStep:
    """Runs a step; after a few runs it records one as a CUDA graph, which it replays from then on.

    The step must take what changes from one run to the next as tensors, leave its results in tensors that stay where
    they are, and never wait for the device.

    Args:
        step: what is run; its arguments are tensors of the same shapes and types each time.
        generator: the CUDA generator that it draws from; a replay draws what a plain run would.
    """

    def __init__(self, step: Callable[..., None], generator: torch.Generator) -> None:
        self.step, self.generator = step, generator
        self.stream = torch.cuda.Stream(generator.device)
        self.num_runs = 0
        self.inputs: tuple[torch.Tensor, ...] = ()  # where the graph reads its arguments
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *arguments: torch.Tensor) -> None:
        """One run. Work of the current stream before it is done before it, and the other way round."""
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
        for place, argument in zip(self.inputs, arguments, strict=True):
            place.copy_(argument)
        self.graph.replay()
