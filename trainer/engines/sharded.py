"""Shard a base over the processes (PyTorch's FSDP2), for a base that does not fit into one GPU.

Each process holds its part of every layer and gathers a whole layer while that layer computes. Only frozen
weights are sharded. The adapter, added afterwards, is whole in every process, so checkpoints and the saved
adapter are the same files as without sharding. Embeddings, last norm and head stay whole too, because a step
uses them from its start to its end.
"""

from typing import Any

from torch.distributed import get_world_size
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from trainer.errors import ConfigError


def shard(model: Any, device: str) -> Any:
    """Freeze a model in main memory and shard its layers over the processes' devices, one at a time.

    Raises: ConfigError if its layers are not found.
    """
    decoder = model.get_decoder()
    if not hasattr(decoder, "layers"):
        raise ConfigError(
            f"train.shard_base: {type(decoder).__name__} has no `layers` to share out; unset it"
        )
    model.requires_grad_(False)
    mesh = init_device_mesh(device, (get_world_size(),))
    for layer in decoder.layers:
        fully_shard(layer, mesh=mesh)
    whole = {parameter for parameter in model.parameters() if not isinstance(parameter, DTensor)}
    for parameter in whole:
        parameter.data = parameter.data.to(device)
    # This shards nothing more, but prefetches the next layer while one computes, and moves the buffers.
    fully_shard(decoder, mesh=mesh, ignored_params=whole)
    return model
