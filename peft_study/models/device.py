"""The device of this process, and the processes beside it, as `accelerate launch` or torchrun started them."""

from datetime import timedelta

import torch
from accelerate import PartialState

PATIENCE = timedelta(hours=12)
"""How long processes wait for one another: the first may measure a base before the others train on."""


def this_process() -> PartialState:
    """Return what is known of this process: its number, how many there are."""
    # Without `cpu`, processes on a machine without a GPU would each believe that they are alone.
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)


def this_device() -> torch.device:
    """Return the device that this process computes on."""
    device = this_process().device
    assert device is not None
    return device
