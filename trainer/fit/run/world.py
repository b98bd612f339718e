"""The processes that share one training: started by torchrun or accelerate, or just this one.

The first of them decides and writes; the others hear what it decided, so that none goes another way and
leaves the rest waiting. Checkpoints and results must lie where all of them can read.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

T = TypeVar("T")


class World:
    """size: how many. rank: which one is this. first: whether it is the one that writes."""

    def __init__(self, device: str) -> None:
        """Joins the others; device: `cpu` (over gloo) or `cuda` (over NCCL, each its own GPU)."""
        os.environ.pop("ACCELERATE_MIXED_PRECISION", None)  # of `accelerate launch`; train.dtype decides
        self._state: Any = PartialState(cpu=device == "cpu")
        self.size: int = self._state.num_processes
        self.rank: int = self._state.process_index
        self.first = self.rank == 0

    def agree(self, find: Callable[[], T]) -> T:
        """What the first process finds; the others wait for it."""
        found = [find() if self.first else None]
        broadcast_object_list(found)
        return cast(T, found[0])

    def share(self, things: Sequence[Any]) -> Sequence[Any]:
        """This process's part of them; `joined` puts the parts' results into the things' order."""
        return things[self.rank :: self.size]

    def joined(self, results: Sequence[Any]) -> list[Any]:
        parts = gather_object([list(results)]) if self.size > 1 else [list(results)]
        whole: list[Any] = [None] * sum(map(len, parts))
        for rank, part in enumerate(parts):
            whole[rank :: self.size] = part
        return whole

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """Put the mean over all processes into each of them, by one exchange."""
        joined = torch.cat([tensor.flatten() for tensor in tensors])
        torch.distributed.all_reduce(joined)
        means = (joined / self.size).split([tensor.numel() for tensor in tensors])
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean.view_as(tensor))

    def wait(self) -> None:
        """Until all are here."""
        self._state.wait_for_everyone()

    def leave(self) -> None:
        """At the end of what is done together."""
        self._state.destroy_process_group()
