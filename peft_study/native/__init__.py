"""Kernels in C++ for what PyTorch does slowly on a CPU, compiled on first use and kept in the user's cache."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from peft_study.errors import KernelError
from peft_study.files import cache_folder, replacing

_HERE = Path(__file__).parent
_FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-std=c++17", "-fPIC", "-shared", "-pthread"]


def _processor() -> str:
    """Return what tells processors apart, since a kernel is compiled for this one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


@cache
def library(name: str, **constants: int) -> ctypes.CDLL:
    """Return `name`.cpp compiled with `constants`, in about two seconds the first time.

    Raises KernelError where it cannot be compiled or loaded on this machine.
    """
    source = _HERE / f"{name}.cpp"
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        raise KernelError("there is no C++ compiler (c++, g++ or clang++) on this machine, or CXX to name one")
    command = [compiler, *_FLAGS, *(f"-D{key}={value}" for key, value in constants.items()), str(source)]
    code = b"".join(path.read_bytes() for path in [source, *sorted(_HERE.glob("*.h"))])
    key = hashlib.blake2b(f"{command}{_processor()}".encode() + code, digest_size=8).hexdigest()
    path = cache_folder() / f"{name}-{key}.so"
    try:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as new:
                subprocess.run([*command, "-o", str(new)], check=True, capture_output=True, text=True)
        return ctypes.CDLL(str(path))
    except subprocess.CalledProcessError as error:
        first = next((line for line in error.stderr.splitlines() if "error" in line), "no message")
        raise KernelError(f"{compiler} cannot compile {source.name} ({first.strip()})") from error
    except OSError as error:
        raise KernelError(f"the kernel {path} cannot be compiled, written or loaded ({error})") from error


@cache
def _parallel() -> int | None:
    """Return the address of GOMP_parallel in the OpenMP that PyTorch brings, None where it brings none."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("lib*omp*.so*")):
        runtime = ctypes.CDLL(str(path))
        if hasattr(runtime, "GOMP_parallel"):
            return ctypes.cast(runtime.GOMP_parallel, ctypes.c_void_p).value
    return None


def threads() -> tuple[int, ctypes.c_void_p]:
    """Return who computes, as kernels take it: how many threads PyTorch uses, and what runs a function on them."""
    return torch.get_num_threads(), ctypes.c_void_p(_parallel())


def address(tensor: Tensor | None) -> ctypes.c_void_p:
    """Return where the values of a tensor lie, null for none."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
