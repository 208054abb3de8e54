"""Where compiled code is kept, so that only the first run on a machine compiles (about half a minute)."""

import hashlib
from pathlib import Path

import numba

from peft_study.files import cache_folder


def _version() -> str:
    """Return what tells states of the sources apart: numba looks at one file at a time, but they call each other."""
    digest = hashlib.blake2b(numba.__version__.encode(), digest_size=8)
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


numba.config.CACHE_DIR = str(cache_folder() / f"igsm-{_version()}")  # pyright: ignore

jit = numba.njit(cache=True)
"""Compiles a function on first use."""
