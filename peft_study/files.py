"""Files that are there whole or not at all."""

import os
from pathlib import Path


def write_atomic(path: Path, text: str) -> None:
    """Write `text` to `path`: a kill at any moment leaves the old file or the new one."""
    # Workers may write the same file at once; each has a name of its own beside it.
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        new.write_text(text)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Return where this user keeps what is compiled for this machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "peft_study"
