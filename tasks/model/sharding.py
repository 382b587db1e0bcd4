"""Weights spread over several processes, for a model larger than one device (FSDP2)."""

import torch
from torch import nn
from torch.distributed import is_initialized
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from dataworth.storage.errors import InputError
from dataworth.storage.spelling import setting

__all__ = ["shard"]


def shard(model: nn.Module, device: torch.device) -> None:
    """Shard every block of the transformer, then what is left; each process computes whole layers, holds a part.

    All processes must run their passes in step: a pass gathers weights from all of them.

    Args:
        model: on the CPU.
        device: of this process.

    Raises:
        InputError: the processes were not started together.
    """
    if not is_initialized():
        raise InputError(f"{setting('model.shard')}: start several processes with torchrun")
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for module in list(model.modules()):
        if isinstance(module, nn.ModuleList):
            for block in module:
                fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
