"""Files that are there whole or not at all, and that one process holds at a time."""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft_study.errors import StoreError


def beside(path: Path) -> Path:
    """Return a name beside `path` for what is not whole yet: workers, and threads of one, may write a file at once."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}.new")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write to; what is written there takes the place of `path` if nothing is raised.

    A kill at any moment leaves the old file or the new one.
    """
    new = beside(path)
    try:
        yield new
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def write_atomic(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with replacing(path) as new:
        new.write_text(text)


def whole_lines(path: Path) -> list[bytes]:
    """Return the lines of a file that is appended to, made where it is missing.

    A line that a kill has left unfinished is taken off its end. One process at a time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    found = path.read_bytes()
    whole = found[: found.rfind(b"\n") + 1]
    if whole != found:
        with path.open("r+b") as opened:
            opened.truncate(len(whole))
    return whole.splitlines()


def cache_folder() -> Path:
    """Return where this user keeps what is compiled for this machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "peft_study"


@contextmanager
def locked(path: Path, *, wait: bool = False, busy: str = "") -> Iterator[None]:
    """Hold the lock file `path`; raise StoreError with the text `busy` where another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(busy) from None
        yield
    finally:
        os.close(descriptor)
