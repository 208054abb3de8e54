"""The device of this process, and the processes beside it, as `accelerate launch` or torchrun started them."""

import atexit
from datetime import timedelta
from functools import cache

import torch
from accelerate import DistributedType, PartialState

PATIENCE = timedelta(hours=12)
"""How long processes wait for one another: the first may measure a base before the others train on."""


def this_process() -> PartialState:
    """Return what is known of this process: its number, how many there are."""
    # Without `cpu`, processes on a machine without a GPU would each believe that they are alone.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)
    if state.distributed_type == DistributedType.MULTI_CPU:
        _leave_at_exit()
    return state


@cache
def _leave_at_exit() -> None:
    """Have this process leave the others in good order: gloo's threads, left running, may abort it as it ends."""
    atexit.register(lambda: PartialState().destroy_process_group())


def this_device() -> torch.device:
    """Return the device that this process computes on."""
    device = this_process().device
    assert device is not None
    return device
