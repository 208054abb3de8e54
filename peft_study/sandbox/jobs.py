"""What a sandbox is asked and what it answers: limits, layers, jobs and outcomes."""

from enum import StrEnum
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from peft_study.records import Grade


class Limits(BaseModel):
    """What one program may use; its examiner has the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu_seconds: int = Field(default=20, ge=1)
    """Seconds of CPU time of a process. This ends most endless programs, however busy the machine is."""
    wall_seconds: float = Field(default=120.0, gt=0)
    """Seconds from the program's start to the verdict; for programs that wait."""
    memory_mib: int = Field(default=1024, ge=64)
    """MiB of address space of a process; Python itself takes some 30."""
    processes: int = Field(default=1, ge=1, le=64)
    """Processes and threads at once, the program's first included; each of them may use the memory and the CPU time."""
    output_bytes: int = Field(default=4 << 20, ge=1)
    """Bytes that are printed in all, and bytes of one returned value."""
    file_mib: int = Field(default=16, ge=1)
    """MiB of all files in the program's folder. Without `Layer.NAMESPACES` it has no folder, and can write no file."""


class Layer(StrEnum):
    """What holds a program in. Needed: `seccomp`, one of `namespaces` and `landlock`, and for root `uid`."""

    SECCOMP = "seccomp"
    """A filter of system calls: no sockets, no exec, no signals or limits for others, no memory beside the limit."""
    NAMESPACES = "namespaces"
    """A root, a network and a table of processes of its own."""
    LANDLOCK = "landlock"
    """Only Python's library can be opened (and the program's folder, where it has one)."""
    UID = "uid"
    """A user id that nobody has, so that the limits bind although the caller is root."""


class Job(NamedTuple):
    """One program and what it is asked."""

    program: str
    """Source text; not trusted."""
    entry_point: str
    """Name of the function that the exam calls as `candidate`; empty for none."""
    exam: str
    """Source text that runs in the examiner: an AssertionError is wrong, its end right, SystemExit its own mistake."""
    data: Any = None
    """Plain value that the exam finds as `data`."""


class Outcome(NamedTuple):
    """What became of a program."""

    grade: Grade
    reason: str
    """One line; empty if right. Part of it may be the program's own words."""
    seconds: float
    """From the program's start to the verdict."""
