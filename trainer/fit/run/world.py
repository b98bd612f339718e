"""The processes that share one training, started by torchrun or accelerate; or this process alone.

Rank 0 decides, writes and broadcasts, so that no process takes another path and leaves the rest waiting.
Checkpoints and results must lie where all processes can read them.

Tried (tests/trainer/test_several_processes.py): two processes over gloo on a CPU. Not tried: NCCL,
several hosts, and a sharded base on a GPU.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

T = TypeVar("T")


class World:
    """size: the number of processes. rank: this one's. first: whether this one decides and writes."""

    def __init__(self, device: str) -> None:
        """Join the others. device: `cpu` (over gloo) or `cuda` (over NCCL, one GPU each)."""
        os.environ.pop("ACCELERATE_MIXED_PRECISION", None)  # of `accelerate launch`; train.dtype decides
        self._state: Any = PartialState(cpu=device == "cpu")
        self.size: int = self._state.num_processes
        self.rank: int = self._state.process_index
        self.first = self.rank == 0

    def agree(self, find: Callable[[], T]) -> T:
        """Return what the first process finds; the others wait for it."""
        found = [find() if self.first else None]
        broadcast_object_list(found)
        return cast(T, found[0])

    def share(self, things: Sequence[Any]) -> Sequence[Any]:
        """Return this process's part; `joined` puts the results of the parts back into order."""
        return things[self.rank :: self.size]

    def joined(self, results: Sequence[Any]) -> list[Any]:
        """Return the results of all processes, in the order of what was shared."""
        parts = gather_object([list(results)]) if self.size > 1 else [list(results)]
        whole: list[Any] = [None] * sum(map(len, parts))
        for rank, part in enumerate(parts):
            whole[rank :: self.size] = part
        return whole

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor by its mean over all processes, in one exchange."""
        joined = torch.cat([tensor.flatten() for tensor in tensors])
        torch.distributed.all_reduce(joined)
        means = (joined / self.size).split([tensor.numel() for tensor in tensors])
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean.view_as(tensor))

    def wait(self) -> None:
        """Wait until every process gets here."""
        self._state.wait_for_everyone()

    def leave(self) -> None:
        """Leave the group, at the end of the joint work."""
        self._state.destroy_process_group()
