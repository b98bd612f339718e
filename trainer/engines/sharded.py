"""A base that is shared out over the processes (PyTorch's FSDP2), for one that does not fit into a GPU.

Each process holds its part of every layer and gathers the whole of a layer while that computes. Only what is
frozen is shared out: the adapter, put on afterwards, is whole in every process, so that checkpoints and the
adapter that is saved are the same files as without. Embeddings, last norm and head stay whole too: they are
in use from a step's begin to its end, or would have to be gathered for all of it.
"""

from typing import Any

from torch.distributed import get_world_size
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from trainer.errors import ConfigError


def shard(model: Any, device: str) -> Any:
    """A frozen model in main memory, its layers shared out over the processes' devices, one at a time.

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
    # Shares out nothing more, but lets the next layer be gathered while one computes; and moves the buffers.
    fully_shard(decoder, mesh=mesh, ignored_params=whole)
    return model
