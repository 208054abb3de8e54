"""Checkpoints of a run in progress: one safetensors file, written atomically, never a pickle."""

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from peft_study.errors import CheckpointError

FILE = "training.safetensors"


def save_state(folder: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write tensors and JSON-able `meta` to `folder`; a kill at any moment leaves the old file or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{FILE}.tmp"
    save_file({name: t.detach().contiguous() for name, t in tensors.items()}, temporary, {"meta": json.dumps(meta)})
    os.replace(temporary, folder / FILE)


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return (tensors, meta) of the last checkpoint, None if there is none; CheckpointError if it is damaged."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads(file.metadata()["meta"])
            return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118  # not a mapping
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete {folder} to start this run again") from error
