"""Programs that nobody has read, run where they can do no harm: Linux only.

    with Sandbox(Limits(), allow_untrusted_code=True) as sandbox:
        outcomes = sandbox.run([Job(program, "add", "assert candidate(2, 3) == 5")])

Each program runs in a process of its own, which the kernel denies: the network, other processes, files other than
Python's library (and one folder in memory that is thrown away), starting other programs, and more CPU time, memory,
processes, output or disk than `Limits` says. Which layers hold that up depends on the machine (`Layer`); they are
tried out before the first program, and where too few are in force nothing runs.

The tests run in a second process, which alone can write the verdict and which alone has the tests. It passes plain
values to the program's function and gets plain values back. So a program cannot fake its verdict by ending early, by
what it prints, by classes that compare equal to everything, or by looking for the tests or a secret in its memory.

All of it ends with the caller, even one that is killed.

Not resisted: a bug of the kernel; what one program can learn of the machine from time, and from the names and sizes
of files where there are no namespaces; the use of CPU and memory up to the limits; a program that knows the answers.
"""

import queue
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Self

from peft_study.errors import ConfigError, DataError, SandboxError
from peft_study.records import Grade
from peft_study.sandbox.jobs import Job, Layer, Limits, Outcome
from peft_study.sandbox.warden import LostError, Warden


class Protection(NamedTuple):
    """What is in force."""

    layers: frozenset[Layer]
    limits: Limits
    uids: tuple[int, int] | None
    """Users of the first worker's programs and of their examiners; None for the caller's own."""

    def describe(self) -> str:
        """Return one line for a log."""
        user = f"user {self.uids[0]}" if self.uids else "the same user"
        values = " ".join(f"{name}={value}" for name, value in self.limits)
        return f"sandbox: {' '.join(sorted(self.layers))}; as {user}; {values}"


class Sandbox:
    """A place to run untrusted programs in.

    `workers` programs run at once. `layers` are those to try: all, unless a machine has one that misbehaves. `python`
    is the command of the interpreter for the programs (3.11 or later), for a machine where a user without rights
    cannot read the present one. ConfigError without `allow_untrusted_code`, SandboxError where protection lacks.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        allow_untrusted_code: bool = False,
        workers: int = 1,
        layers: frozenset[Layer] = frozenset(Layer),
        python: Sequence[str] = (sys.executable,),
    ) -> None:
        if not allow_untrusted_code:
            raise ConfigError(
                "allow_untrusted_code is False: this runs programs that a model wrote on this machine, each in a "
                "process without network and rights, with limits; set it to True if you want that"
            )
        if workers < 1:
            raise ConfigError(f"workers must be at least 1, but is {workers}")
        if not sys.platform.startswith("linux"):
            raise SandboxError(f"programs run on Linux only, but this is {sys.platform}: use a container")
        self.limits = limits or Limits()
        self._closed = False
        self._python, self._layers, self._workers = python, layers, workers
        self._wardens: list[Warden] = []
        self._free: queue.SimpleQueue[Warden] = queue.SimpleQueue()
        try:
            self.protection = self._set_up()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes of the sandbox; it runs no more programs then."""
        self._closed = True
        for warden in self._wardens:
            warden.close()

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Run each program and return the outcomes in the same order; DataError for an exam that is itself broken."""
        if self._closed:
            raise SandboxError("a sandbox that has been closed runs no programs; make another")
        with ThreadPoolExecutor(self._workers) as pool:
            return list(pool.map(self._run, jobs))

    def _run(self, job: Job) -> Outcome:
        warden = self._free.get()
        try:
            reply = warden.run(job)
        except LostError as error:
            # Whatever the program did to it, the next one finds a new warden.
            warden.close()
            try:
                fresh = self._start()
            except LostError as again:
                raise SandboxError(f"the sandbox does not start again: {again}; see whether memory is left") from None
            self._wardens.remove(warden)
            warden = fresh
            reply = {"grade": Grade.CRASHED, "reason": f"took its sandbox down: {error}", "seconds": 0.0}
        finally:
            self._free.put(warden)
        if reply["grade"] == "broken":
            raise DataError(f"the tests of {job.entry_point!r} cannot be run: {_line(reply['reason'])}")
        return Outcome(Grade(reply["grade"]), _line(reply["reason"]), reply["seconds"])

    def _start(self) -> Warden:
        warden = Warden(self._python, self.limits, self._layers)
        self._wardens.append(warden)
        return warden

    def _set_up(self) -> Protection:
        """Start the wardens, find out which layers hold, and refuse if those are too few."""
        why = ""
        try:
            first = self._start()
        except LostError as error:
            why = f" ({error})"
            self._layers -= {Layer.NAMESPACES}
            try:
                first = self._start()
            except LostError as second:
                raise SandboxError(
                    f"the sandbox cannot start: {second}; name another interpreter as `python`"
                ) from None
        lack = lacking(first.layers, root=first.root, processes=self.limits.processes)
        if lack:
            raise SandboxError(f"this machine cannot hold untrusted programs: {lack}{why}")
        self._free.put(first)
        for _ in range(self._workers - 1):
            self._free.put(self._start())
        self._try_out()
        return Protection(first.layers, self.limits, first.uids)

    def _try_out(self) -> None:
        """Run a program that tries to get out; SandboxError if it gets anywhere."""
        with tempfile.TemporaryDirectory() as folder:
            for name, mode in ((".", 0o777), ("file", 0o666)):
                Path(folder, name).touch()
                Path(folder, name).chmod(mode)
            forks = self.limits.processes > 1
            data = (folder, self.limits.memory_mib << 20, forks)
            outcome = self._run(Job(ESCAPES, "escapes", "found = candidate(*data)\nassert not found, found", data))
        if outcome.grade != Grade.RIGHT:
            raise SandboxError(
                f"this machine cannot hold untrusted programs: a trial of the sandbox ended with {outcome.reason!r}; "
                "if it could not import, name a Python that every user can read as `python`"
            )


def lacking(layers: frozenset[Layer], *, root: bool, processes: int) -> str:
    """Return what is missing for programs to be held in, empty if nothing is.

    >>> lacking(frozenset({Layer.SECCOMP, Layer.LANDLOCK}), root=False, processes=1)
    ''
    """
    if Layer.SECCOMP not in layers:
        return "system calls cannot be filtered (seccomp, on x86-64 or aarch64), so the network is open; use another"
    if not layers & {Layer.NAMESPACES, Layer.LANDLOCK}:
        return "files are open: it has neither namespaces nor Landlock (Linux 5.13); use a kernel with one of them"
    if root and Layer.UID not in layers:
        return "root is not bound by limits and cannot become another user here; run as an ordinary user"
    if processes > 1 and Layer.NAMESPACES not in layers:
        return f"processes is {processes}, but without namespaces some could outlive the program; set it to 1"
    return ""


ESCAPES = """
import colorsys, os, socket  # a module that is not loaded yet: Python's library can be read

def escapes(folder, memory, forks):
    def fork():
        if os.fork() == 0:
            os._exit(0)

    attempts = {
        "opens a socket": socket.socket,
        "reads a file": lambda: open(f"{folder}/file").close(),
        "writes to a file": lambda: open(f"{folder}/file", "a").close(),
        "makes a file": lambda: open(f"{folder}/new", "w").close(),
        "sees other processes": lambda: open(f"/proc/{os.getppid()}/environ").close(),
        "signals its parent": lambda: os.kill(os.getppid() or 2, 0),
        "starts a program": lambda: os.execv("/bin/true", ["true"]),
        "takes too much memory": lambda: bytearray(memory),
    }
    if not forks:
        attempts["starts a process"] = fork
    found = ["is root"] if 0 in os.getresuid() else []
    for name, attempt in attempts.items():
        try:
            attempt()
        except (OSError, MemoryError):
            continue
        found.append(name)
    return found
"""
"""A program that tries to get out, and returns the ways that were open."""


def _line(text: str) -> str:
    """Return a text as one line of characters that can be printed."""
    return "".join(c if c.isprintable() else " " for c in text).strip()
