"""Several processes that work on one store together, as `torchrun` starts them: data parallel, on any devices.

The first process leads: it runs the flow, plans and logs. The others follow: they carry out the orders the leader gives
and know nothing of Prefect.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Processes", "follow", "processes", "started_together"]

# Longest wait for the others: a shard of a large model may take hours, a process that died is seen by torchrun.
PATIENCE = timedelta(days=7)
CPU = torch.device("cpu")


def started_together() -> bool:
    """This process is one of several that torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@dataclass(frozen=True)
class Processes:
    """This process among those that were started together.

    Args:
        rank: its number; 0 leads.
        size: how many there are.
        local_rank: its number on this machine, and that of its device.
    """

    rank: int
    size: int
    local_rank: int

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def order(self, name: str, arguments: Mapping[str, Any]) -> None:
        """The leader tells the others what to do (see `follow`)."""
        if self.size > 1 and self.leads:
            dist.broadcast_object_list([(name, dict(arguments))], src=0, device=CPU)

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()

    def agreed(self, number: int) -> int:
        """The leader's number, on every process."""
        shared = [number]
        if self.size > 1:
            dist.broadcast_object_list(shared, src=0, device=CPU)
        return shared[0]

    def total(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums over the processes, on the CPU."""
        totals = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
        if self.size > 1:
            for tensor in totals.values():
                dist.all_reduce(tensor)
        return totals

    def leave(self) -> None:
        """The leader lets the others go, once nothing is left to order."""
        if self.size > 1:
            self.order("stop", {})
            dist.destroy_process_group()


@cache
def processes() -> Processes:
    """This process's place; the group is joined at the first call."""
    if not started_together():
        return Processes(0, 1, 0)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    return Processes(dist.get_rank(), dist.get_world_size(), local_rank)


def follow(actions: Mapping[str, Callable[..., Any]]) -> None:
    """Carry out the leader's orders until it says `stop`.

    Args:
        actions: what can be ordered; the leader calls the same function itself after the order.
    """
    while True:
        received: list[Any] = [None]
        dist.broadcast_object_list(received, src=0, device=CPU)
        name, arguments = received[0]
        if name == "stop":
            dist.destroy_process_group()
            return
        actions[name](**arguments)
