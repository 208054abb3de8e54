"""Where a result comes from: commit, uncommitted changes, versions, device."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "peft", "accelerate", "optuna", "mlflow", "numpy")


ROOT = Path(__file__).resolve().parents[2]
"""What holds the package: the top of its repository, where it runs from a checkout."""

_CODE = ("*.py", "*.yaml", "*.toml", "*.txt", "*.cpp", "*.h")


def _git(*arguments: str) -> str | None:
    command = ("git", "-C", str(ROOT), *arguments)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def provenance() -> dict[str, Any]:
    """Return what a reader needs to know about where a result was made.

    `commit` is that of this package wherever it is called from, None where it does not run from a checkout of its own;
    `dirty` says whether code is changed or new since.
    """
    # An installed package may lie inside of another repository.
    is_checkout = _git("ls-files", "--error-unmatch", str(Path(__file__).resolve())) is not None
    commit = _git("rev-parse", "HEAD") if is_checkout else None
    diff = _git("diff", "HEAD", "--", *_CODE) if commit else None
    changed = _git("status", "--porcelain", "--", *_CODE) if commit else None
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({platform.machine()})"
    return {
        "commit": commit.strip() if commit else None,
        "dirty": bool(changed),
        "diff": (diff or "")[:100_000],
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
        "device": device,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
