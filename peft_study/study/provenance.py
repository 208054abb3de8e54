"""Where a result comes from: commit, uncommitted changes, versions, device."""

import platform
import subprocess
from importlib.metadata import version
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "peft", "accelerate", "optuna", "mlflow", "numpy")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(("git", *arguments), capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def provenance() -> dict[str, Any]:
    """Return what a reader needs to know about where a result was made; `commit` is None outside a checkout."""
    commit = _git("rev-parse", "HEAD")
    diff = _git("diff", "HEAD", "--", "*.py", "*.yaml", "*.toml", "*.txt") if commit else None
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({platform.machine()})"
    return {
        "commit": commit.strip() if commit else None,
        "dirty": bool(diff),
        "diff": (diff or "")[:100_000],
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
        "device": device,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
