"""What a process that trains asks of its machine, and what it measures of it."""

import ctypes
import json
import os
import shutil
import sys
import sysconfig
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from peft_study.errors import ConfigError, KernelError
from peft_study.files import beside
from peft_study.models.attention import require_kernel
from peft_study.models.config import PretrainedConfig
from peft_study.models.fused import Attention, attend, seen_by
from peft_study.training.config import TrainingConfig

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


_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
"""Microseconds of processor time in each period, and that period; or `max`."""


def usable_cores() -> int:
    """Return how many cores this process may use: those that the system grants it, a container's limit included."""
    cores = len(os.sched_getaffinity(0)) if sys.platform.startswith("linux") else os.cpu_count() or 1
    limit = _CPU_LIMIT.read_text().split() if _CPU_LIMIT.is_file() else []
    if len(limit) == 2 and limit[0].isdecimal():
        cores = min(cores, -(-int(limit[0]) // int(limit[1])))
    return max(1, cores)


def usual_threads() -> int:
    """Return the threads of a run on any model: OMP_NUM_THREADS, or its share of the cores under a launcher.

    torchrun sets that variable to 1 by itself, so there it says nothing.
    """
    if processes := os.environ.get("LOCAL_WORLD_SIZE"):
        return max(1, usable_cores() // int(processes))
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(asked)) if asked.isdecimal() else usable_cores()


def prepare_process(threads: int) -> None:
    """Set up this process for training with `threads` CPU threads. Results depend on the number of threads."""
    keep_freed_memory()
    disable_progress_bar()  # of transformers, for every file it reads or writes
    # peft 0.21 asks transformers 5 the old way.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    torch.set_num_threads(threads)


def bf16_speedup(*, rounds: int = 15) -> float:
    """Return how many times faster this CPU multiplies matrices of a layer in bf16 than in fp32, forward and backward.

    Instructions for bf16 do not decide: without AMX they make one server processor faster and another slower (LOG.md).
    """
    inputs, weights = torch.randn(4096, 128), torch.randn(320, 128)
    outputs = torch.randn(4096, 320)
    best: dict[torch.dtype, float] = {}
    for _ in range(rounds):
        for dtype in (torch.float32, torch.bfloat16):
            x, w, g = inputs.to(dtype), weights.to(dtype), outputs.to(dtype)
            started = time.perf_counter()
            _ = x @ w.T, g @ w, g.T @ x
            best[dtype] = min(best.get(dtype, float("inf")), time.perf_counter() - started)
    return best[torch.float32] / best[torch.bfloat16]


def _choose_precision() -> dict[str, Any]:
    if torch.cuda.is_available():
        return {"precision": "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"}
    speedup = bf16_speedup() if torch.ops.mkldnn._is_mkldnn_bf16_supported() else 0.0
    return {"precision": "bf16" if speedup > 1 else "fp32", "bf16_speedup": round(speedup, 2)}


def attention_seconds(
    attentions: Sequence[Attention], dtype: torch.dtype, head_width: int, *, rounds: int = 8
) -> dict[str, float]:
    """Return what each way to compute attention takes on this CPU, forward and backward, the best of `rounds`.

    For 4 windows of 256 tokens, 4 heads, documents of 96 tokens.
    """
    at_T = torch.arange(256)
    first = {0: (at_T // 96 * 96).expand(4, -1).contiguous()}
    q, k, v = (torch.randn(4, 256, 4, head_width, dtype=dtype, requires_grad=True) for _ in range(3))
    best: dict[str, float] = {}
    for _ in range(rounds):
        for attention in attentions:
            seen = seen_by(first, attention, dtype)[0]
            started = time.perf_counter()
            attend(q, k, v, seen, attention).sum().backward()
            best[attention] = min(best.get(attention, float("inf")), time.perf_counter() - started)
    return best


def _choose_attention(precision: str, head_width: int, width: int) -> dict[str, Any]:
    if torch.cuda.is_available():
        return {"attention": "sdpa"}
    choice: dict[str, Any] = {}
    attentions: list[Attention] = ["sdpa", "eager"]
    try:
        require_kernel(head_width)
        if width % 16:
            raise KernelError(f"the kernels of a layer need a width that is a multiple of 16, but it is {width}")
        attentions.append("varlen")
    except KernelError as error:
        choice["why_not_varlen"] = str(error)
    seconds = attention_seconds(attentions, torch.bfloat16 if precision == "bf16" else torch.float32, head_width)
    milliseconds = {attention: round(1e3 * value, 2) for attention, value in seconds.items()}
    return choice | {"attention": min(seconds, key=seconds.__getitem__), "attention_ms": milliseconds}


COMPILED_STEPS = 200
"""Steps from which compiling pays: it takes 20 s the first time and 3 s later, and saves 0.05 s a step (LOG.md)."""


def check_attention(config: TrainingConfig, device: torch.device) -> None:
    """Raise ConfigError where attention cannot be computed on `device` as is asked for."""
    if config.attention == "varlen" and device.type != "cpu":
        raise ConfigError(
            f"training.attention: varlen computes on a CPU, but this is {device.type}; set training.attention to auto"
        )


def is_compiled(config: TrainingConfig, steps: int, device: torch.device) -> bool:
    """Return whether a run of `steps` steps has its layers compiled; ConfigError where it must be and cannot."""
    if config.compile is True and not _can_compile(device):
        raise ConfigError(
            "training.compile is true, but there is no C++ compiler (g++, or what CXX names; on a GPU a C compiler) "
            "or no header of Python; install them, or set training.compile=auto"
        )
    if config.compile != "auto":
        return config.compile
    if config.attention == "varlen":
        # Its layers run by kernels of their own, as quick as what a compiler makes of them (LOG.md, 2026-11-27).
        return False
    return steps >= COMPILED_STEPS and _can_compile(device)


def _can_compile(device: torch.device) -> bool:
    """Return whether there is what torch.compile builds with: on a GPU Triton's launcher is made by a C compiler."""
    if device.type == "cpu":
        compilers = [os.environ.get("CXX", "g++")]
    else:
        compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang", "cc"]
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return headers.is_file() and any(shutil.which(compiler) for compiler in compilers)


_MEASURES = threading.Lock()


def _chosen_once(kept: Path, choose: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what is kept in a file, or what `choose` measures, which is kept from then on.

    ConfigError where it was chosen on another kind of device: its kernels may not run on this one.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # Threads would measure each other.
    with _MEASURES:
        if not kept.is_file():
            choice = {"device": device} | choose()
            kept.parent.mkdir(parents=True, exist_ok=True)
            new = beside(kept)
            new.write_text(json.dumps(choice) + "\n")
            # The first of several workers decides for all.
            try:
                os.link(new, kept)
            except FileExistsError:
                pass
            except OSError:
                # Some file systems have no links.
                if not kept.is_file():
                    new.replace(kept)
            new.unlink(missing_ok=True)
        choice = json.loads(kept.read_text())
    begun = choice.get("device", device)
    if begun != device:
        raise ConfigError(
            f"{kept} says what to compute with on {begun}, where this was begun, but this is {device}; go on there, "
            "choose another folder with --runs, or delete that file if trials may be computed in two ways"
        )
    return choice


def settled(config: TrainingConfig, folder: Path, *, head_width: int, width: int) -> TrainingConfig:
    """Return `config` with the precision and the attention to compute with here in place of `auto`.

    Both are chosen once and kept in `folder`, so that all trials of a sweep compute alike and a run that was killed
    goes on as it began: the precision in `precision.json`, the attention of models of `width` values and heads of
    `head_width` in a file for each precision.
    """
    precision, attention = config.precision, config.attention
    if precision == "auto":
        precision = _chosen_once(folder / "precision.json", _choose_precision)["precision"]
    if attention == "auto":
        kept = folder / f"attention-{precision}-{width}-{head_width}.json"
        attention = _chosen_once(kept, lambda: _choose_attention(precision, head_width, width))["attention"]
    return config.model_copy(update={"precision": precision, "attention": attention})


TYPICAL_HEAD = 64
"""Values of a head that attention of other models is measured with."""


def settled_pretrained(
    training: TrainingConfig, pretrained: PretrainedConfig, folder: Path
) -> tuple[TrainingConfig, PretrainedConfig]:
    """Return the configs of a run on any model, with precision and attention in place of `auto`, and equal dtypes.

    On a CPU both are measured, once, and kept in `kernels-pretrained.json` of `folder`: eager attention is taken where
    it is faster, else what transformers prefers, as on a GPU. ConfigError where what is asked for contradicts itself.
    """
    if training.optimizer != "adamw":
        raise ConfigError(
            f"training.optimizer={training.optimizer} is for the bases of the study, whose layers it knows; set adamw"
        )
    if training.attention != "auto":
        raise ConfigError(
            f"training.attention is for the bases of the study, but got {training.attention}; set pretrained.attention"
        )
    names = {"fp32": "float32", "bf16": "bfloat16"}
    asked = next((short for short, name in names.items() if name == pretrained.dtype), "auto")
    if "auto" not in (asked, training.precision) and asked != training.precision:
        raise ConfigError(
            f"pretrained.dtype={pretrained.dtype} and training.precision={training.precision} must be the same; set one"
        )
    wanted = asked if asked != "auto" else training.precision
    if "auto" not in (wanted, pretrained.attention):
        return training.model_copy(update={"precision": wanted}), pretrained.model_copy(update={"dtype": names[wanted]})

    def choose() -> dict[str, Any]:
        choice = _choose_precision()
        if torch.cuda.is_available():
            return choice | {"attention": dict.fromkeys(names, "auto")}
        fastest: dict[str, str] = {}
        for short, name in names.items():
            seconds = attention_seconds(("sdpa", "eager"), getattr(torch, name), TYPICAL_HEAD)
            fastest[short] = "eager" if seconds["eager"] < seconds["sdpa"] else "auto"
        return choice | {"attention": fastest}

    choice = _chosen_once(folder / "kernels-pretrained.json", choose)
    precision = wanted if wanted != "auto" else choice["precision"]
    attention = choice["attention"][precision] if pretrained.attention == "auto" else pretrained.attention
    held = pretrained.model_copy(update={"dtype": names[precision], "attention": attention})
    return training.model_copy(update={"precision": precision}), held
