"""The machine that is measured: its kind, and what products of matrices reach on it."""

import statistics
import time

import torch

from peft_study.models.device import this_device


def kind() -> str:
    """Return what results of this machine are filed under: products in bf16 differ by an order between these."""
    if torch.cuda.is_available():
        return "cuda"
    return "cpu-amx" if torch.cpu.get_capabilities().get("amx_bf16") else "cpu"


def roofline(threads: int, *, rows: int, width: int, mlp_width: int) -> dict[str, float]:
    """Return what the product of `rows` tokens with a layer's largest matrix reaches here, GFLOP/s by dtype."""
    torch.set_num_threads(threads)
    device, found = this_device(), {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        x, w = torch.randn(rows, width, device=device).to(dtype), torch.randn(width, mlp_width, device=device).to(dtype)
        times = []
        for _ in range(20):
            started = time.perf_counter()
            _ = x @ w
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        found[name] = 2 * rows * width * mlp_width / statistics.median(times) / 1e9
    return found
