"""What a process that trains asks of its machine."""

import ctypes
import sys
import warnings

import torch
from transformers.utils.logging import disable_progress_bar

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next step, where the C library is glibc; elsewhere do nothing.

    By default it hands large buffers back to the kernel and faults them in again, page by page, at every step:
    a third of the time of a small model's step was spent in the kernel (LOG.md).
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    libc.mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(_M_TOP_PAD, 64 * 2**20)


def prepare_process(threads: int) -> None:
    """Set up this process for training with `threads` CPU threads. Results depend on the number of threads."""
    keep_freed_memory()
    disable_progress_bar()  # of transformers, for every file it reads or writes
    # peft 0.21 asks transformers 5 the old way.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    torch.set_num_threads(threads)
