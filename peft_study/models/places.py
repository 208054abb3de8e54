"""Where bases lie, and which weights they are; without torch, so that a finished sweep can ask at once."""

import hashlib
from pathlib import Path

from peft_study.models.config import BaseConfig

CHECKPOINTS = Path("checkpoints")
"""Where the bases lie that come with the repository, relative to the working directory."""


def base_folder(config: BaseConfig, family: str) -> Path:
    """Return where the base of `config` lies."""
    return Path(config.path) if config.path else CHECKPOINTS / f"{family}-{config.name}-seed{config.seed}"


def fingerprint(folder: Path) -> str:
    """Return ten hex digits that name the weights in `folder`; empty where there are none, which loading reports."""
    weights = folder / "model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:10] if weights.is_file() else ""
