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
    digest, files = hashlib.sha256(), sorted(folder.glob("*.safetensors"))
    for file in files:
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:10] if files else ""
