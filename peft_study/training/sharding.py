"""Weights, gradients and optimiser state shared out among processes: torch's FSDP2, layer by layer.

A process holds its part of each tensor and, while a layer computes, that layer whole.
"""

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from peft_study.errors import ConfigError
from peft_study.training.config import TrainingConfig


def check_sharded(config: TrainingConfig) -> None:
    """Raise ConfigError where parts of tensors cannot be trained each for itself."""
    if config.optimizer == "muon":
        raise ConfigError(
            "training.optimizer must be adamw to share the weights out: muon needs whole matrices; set it, or "
            "pretrained.shard=false"
        )


def shard(module: nn.Module, device: torch.device) -> None:
    """Share out the parameters of `module` among all processes; those of a quantised layer stay whole in each.

    Their packed bits pretend to be numbers, of which communication changes those that are no numbers
    (bitsandbytes issue 1945).
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    whole = {parameter for parameter in module.parameters() if type(parameter) is not nn.Parameter}
    lists = [each for each in module.modules() if isinstance(each, nn.ModuleList)]
    for layer in max(lists, key=_num_values, default=nn.ModuleList()):
        fully_shard(layer, mesh=mesh, ignored_params=whole)
    fully_shard(module, mesh=mesh, ignored_params=whole)


def _num_values(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def reduce_gradients(module: nn.Module, *, now: bool) -> None:
    """Have the next backward pass exchange gradients, or keep them for a later one that does."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(now)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with the parts of all processes, all of which must call it where it is shared out."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def mine(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor, in the same storage; all of it where it is not shared out."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor as `like` is: this process's part of it where that is shared out."""
    if isinstance(like, DTensor) and tensor.shape == like.shape:
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
    return tensor
