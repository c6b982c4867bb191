"""Ranks: the processes of one training run, as `torchrun` starts them. A process that was started alone is one rank."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch import distributed as dist

PATIENCE_SECONDS = 60.0
"""How long a process whose launcher is gone has to end by itself."""


@dataclasses.dataclass(frozen=True)
class Ranks:
    """Which of the processes that train together this one is, and what they tell each other.

    Apart from `draw`, each method is called by all ranks or by none. With one rank none of them waits for anything.
    """

    rank: int = 0
    """Number of this process, from 0; 0 is the one that writes."""
    size: int = 1
    """Number K of processes."""
    local_rank: int = 0
    """Number of this process on its machine, from 0; it picks the GPU."""

    def device(self, device: str) -> str:
        """This rank's own device of a kind: "cuda" becomes "cuda:LOCAL_RANK".

        Raises:
            ValueError: a single GPU was named for several ranks.
        """
        if self.size == 1 or device == "cpu":
            return device
        if device != "cuda":
            raise ValueError(f"device must be 'cpu' or 'cuda' for {self.size} ranks, got {device!r}")
        return f"cuda:{self.local_rank}"

    def share(self, whole: int, name: str) -> int:
        """How much of a whole is this rank's: K equal parts, this one's begins at `rank * share`.

        Raises:
            ValueError: it cannot be divided; the message names it.
        """
        if whole % self.size:
            raise ValueError(f"{name} must be a multiple of {self.size}, the number of ranks, got {whole}")
        return whole // self.size

    def draw(
        self, sample: Callable[..., Tensor], num: int, generator: torch.Generator | None, device: torch.device
    ) -> Tensor:
        """Random pairs for this rank's rows of a batch, the same whatever the number of ranks. float32 (num, 2).

        Every rank draws for the whole batch of K * num rows and keeps its own; so the ranks' generators stay equal.

        Args:
            sample: `torch.rand` or `torch.randn`.
            num: number of this rank's rows.
            generator: in the same state on all ranks.
            device: the generator's.
        """
        whole = sample((self.size * num, 2), generator=generator, device=device)
        return whole[self.rank * num : (self.rank + 1) * num]

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the ranks of a tensor that each has; a new tensor."""
        values = values.clone()
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is set on any rank."""
        if self.size == 1:
            return list(flags)
        found = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return [bool(flag) for flag in found.tolist()]

    @contextmanager
    def together(self) -> Iterator[None]:
        """What stands inside succeeds on all ranks or ends them all. Nothing inside may talk to other ranks.

        Raises:
            SystemExit: status 2, where a lower rank had an error; that rank raises its own.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            if self.size == 1:
                raise
            error = caught
        if self.size > 1:
            failed = torch.tensor(self.size if error is None else self.rank)
            dist.all_reduce(failed, dist.ReduceOp.MIN)
            if error is not None and int(failed) == self.rank:
                raise error
            if int(failed) < self.size:
                raise SystemExit(2)

    def by_first(self, find: Callable[[], float]) -> float:
        """A number that rank 0 finds, while the others wait for it."""
        value = torch.zeros((), dtype=torch.float64)
        with self.together():
            if self.rank == 0:
                value.fill_(find())
        if self.size > 1:
            dist.broadcast(value, 0)
        return float(value)


ALONE = Ranks()


@contextmanager
def join_ranks(device: str) -> Iterator[Ranks]:
    """The ranks that torchrun's variables RANK, WORLD_SIZE and LOCAL_RANK describe, connected while inside.

    CPU tensors travel by gloo, CUDA tensors by NCCL. A rank that ends with an error takes the others with it: torchrun
    ends them. When all ranks have left without an error, rank 0 goes on and the processes of the others end, with exit
    status 0.

    Args:
        device: "cpu", or "cuda": then rank i of a machine takes its GPU i.

    Raises:
        ValueError: there are more ranks on this machine than GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    if size == 1:
        yield ALONE
        return
    ranks = Ranks(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK", "0")))
    if ranks.device(device) != "cpu":
        if ranks.local_rank >= torch.cuda.device_count():
            raise ValueError(f"--nproc-per-node must be at most {torch.cuda.device_count()}, the GPUs of this machine")
        torch.cuda.set_device(ranks.local_rank)
    _end_with_launcher()
    store, rank, size = next(dist.rendezvous("env://"))
    dist.init_process_group(
        "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl", store=store, rank=rank, world_size=size
    )
    yield ranks
    _leave(ranks, dist.PrefixStore("end", store))


def _leave(ranks: Ranks, store: dist.Store) -> None:
    """Takes the connections down one process after the other.

    gloo aborts a process that closes its connections while a peer closes the other ends. So rank 0 closes its own while
    all others wait for it, and the others end without closing any. They wait by the store, which is no part of gloo.
    Rank 0 may be the one that holds the store, so it waits until nobody needs it any more.
    """
    others = range(1, ranks.size)
    if ranks.rank:
        store.set(f"done {ranks.rank}", "")
        store.wait(["closed"])
        sys.stdout.flush()
        sys.stderr.flush()
        store.set(f"ended {ranks.rank}", "")
        os._exit(0)
    store.wait([f"done {rank}" for rank in others])
    dist.destroy_process_group()
    store.set("closed", "")
    store.wait([f"ended {rank}" for rank in others])


def _end_with_launcher() -> None:
    """Ends this process when the one that started it is gone, which could not stop it any more.

    As Ctrl-C does, with a checkpoint, or after `PATIENCE_SECONDS` without.
    """
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
