"""Ranks: the processes of one training run, as `torchrun` starts them. Without torchrun there is one rank."""

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
"""Seconds in which a process whose launcher has ended must end by itself."""


@dataclasses.dataclass(frozen=True)
class Ranks:
    """This process's number among those that train together, and their communication.

    `mean`, `any`, `together` and `by_first` communicate, so all ranks must call them. With one rank they do not wait.
    """

    rank: int = 0
    """Number of this process, from 0; rank 0 writes the files."""
    size: int = 1
    """Number K of processes."""
    local_rank: int = 0
    """Number of this process on its machine, from 0; also the number of its GPU."""

    def device(self, device: str) -> str:
        """This rank's device: with several ranks "cuda" becomes "cuda:LOCAL_RANK".

        Raises:
            ValueError: a single GPU was named for several ranks.
        """
        if self.size == 1 or device == "cpu":
            return device
        if device != "cuda":
            raise ValueError(f"device must be 'cpu' or 'cuda' for {self.size} ranks, got {device!r}")
        return f"cuda:{self.local_rank}"

    def share(self, whole: int, name: str) -> int:
        """This rank's share of a whole: one of `size` equal parts, from `rank * share` on.

        Raises:
            ValueError: the whole is not divisible by `size`; the message names it.
        """
        if whole % self.size:
            raise ValueError(f"{name} must be a multiple of {self.size}, the number of ranks, got {whole}")
        return whole // self.size

    def draw(
        self, sample: Callable[..., Tensor], num: int, generator: torch.Generator | None, device: torch.device
    ) -> Tensor:
        """Random pairs for this rank's rows of a batch, independent of the number of ranks: float32 (num, 2).

        Every rank draws for the whole batch of K * num rows and returns its own part, so all generators stay equal.

        Args:
            sample: `torch.rand` or `torch.randn`.
            num: number of this rank's rows.
            generator: in the same state on all ranks.
            device: the device of the generator.
        """
        whole = sample((self.size * num, 2), generator=generator, device=device)
        return whole[self.rank * num : (self.rank + 1) * num]

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over the ranks, as a new tensor."""
        values = values.clone()
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether any rank has set it."""
        if self.size == 1:
            return list(flags)
        is_set = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(is_set, dist.ReduceOp.MAX)
        return [bool(flag) for flag in is_set.tolist()]

    @contextmanager
    def together(self) -> Iterator[None]:
        """If the block raises an error on one rank, all ranks end. The block must not communicate with other ranks.

        Raises:
            SystemExit: status 2, if another rank failed. The lowest rank that failed raises its own error.
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

    def by_first(self, compute: Callable[[], float]) -> float:
        """A number that rank 0 computes; the other ranks wait for it."""
        value = torch.zeros((), dtype=torch.float64)
        with self.together():
            if self.rank == 0:
                value.fill_(compute())
        if self.size > 1:
            dist.broadcast(value, 0)
        return float(value)


ALONE = Ranks()


@contextmanager
def join_ranks(device: str) -> Iterator[Ranks]:
    """Connects the ranks that torchrun's variables RANK, WORLD_SIZE and LOCAL_RANK describe, until the block ends.

    CPU tensors travel by gloo, CUDA tensors by NCCL. If a rank ends with an error, torchrun ends the others. When all
    ranks have left without an error, rank 0 goes on and the processes of the others end, with exit status 0.

    Args:
        device: "cpu" or "cuda"; with "cuda" rank i of a machine uses its GPU i.

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
    """Ends this process when the launcher has ended, which could no longer stop it.

    It sends SIGTERM, which saves a checkpoint, and after `PATIENCE_SECONDS` exits without one.
    """
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
