"""Named random streams from one seed: the only source of randomness in the project.

A stream is named by what it is for, so that adding a draw in one place never moves another place's numbers.
"""

import hashlib
import random
import threading

TORCH_GLOBALS = threading.RLock()
"""Held where threads of a process share torch, by whoever seeds its global generator, or makes or loads a model: that
draws from the generator, and transformers replaces the functions of `torch.nn.init` meanwhile."""


def derive_seed(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for the stream `names` of `seed`; different names give independent streams.

    >>> derive_seed(0, "train") == derive_seed(0, "train") != derive_seed(0, "test")
    True
    """
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def python_stream(seed: int, *names: str | int) -> random.Random:
    """Return a Python generator for the stream `names` of `seed`."""
    return random.Random(derive_seed(seed, *names))
