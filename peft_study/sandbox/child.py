"""The other side of the sandbox: a warden that runs programs one after another, each beside an examiner of its own.

    caller -- job (program, limits) --> warden --fork--> program   <-- arguments --  examiner <-- exam -- caller
    caller <------ outcome ------------ warden <------ verdict -- (another process) -- values -->

The program is an untrusted text that defines a function. The examiner is a second process that calls the function
with plain values over a pipe and gets plain values back; it alone can write the verdict, and it alone ever holds
the tests: the exam goes from the caller to the examiner, and the reason of its verdict back, past the warden, whose
memory programs inherit.

Started by `sandbox.Sandbox` in a fresh Python, which has no other threads and no secrets; needs Python's library alone.
It ends with its caller, and takes its programs along: whatever way the caller ended, and whoever still has its pipes.
"""

import contextlib
import fcntl
import gc
import importlib
import json
import os
import random
import select
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

from peft_study.sandbox import walls
from peft_study.sandbox.calls import filter_program, restrict_calls, seccomp_available
from peft_study.sandbox.guests import GONE, examine, serve, write

COMMANDS, REPLIES = 0, 1
NO_VERDICT = "no verdict"
"""Instead of a grade: the examiner says no more."""
PROGRAM, EXAMINER = 0, 1
"""The two processes of a job, as indices of their users."""
PRELOADED = (
    "bisect cmath collections copy datetime decimal fractions functools hashlib heapq itertools math operator "
    "re statistics string typing"
)
"""Modules that many programs import, loaded once."""


class Settings(NamedTuple):
    """What the caller asks of a warden; `sandbox.Limits` documents the fields."""

    layers: list[str]
    exam: int
    """Descriptor that exams are read from."""
    reasons: int
    """Descriptor that examiners write their reasons to."""
    cpu_seconds: int
    wall_seconds: float
    memory_mib: int
    processes: int
    output_bytes: int
    file_mib: int


class AbandonedError(Exception):
    """The caller has ended, or wants no more."""


class Caller:
    """Who started this process, and says what to run."""

    def __init__(self) -> None:
        # A process that the caller forked has the other end of the pipe too, so that its closing tells nothing. The
        # signal for a parent's death would come when the thread ends that started this process.
        self._process = _open_process(os.getppid())
        self._unread = b""

    def register(self, poll: select.poll) -> None:
        """Have `poll` notice the caller's end."""
        poll.register(COMMANDS, 0)
        if self._process is not None:
            poll.register(self._process, select.POLLIN)

    def check(self, descriptor: int) -> None:
        """Raise AbandonedError if what `poll` has found at `descriptor` is the caller's end."""
        if descriptor in (COMMANDS, self._process):
            raise AbandonedError

    def read_line(self) -> bytes:
        """Return the next line; AbandonedError where none comes."""
        poll = select.poll()
        self.register(poll)
        poll.modify(COMMANDS, select.POLLIN)
        while b"\n" not in self._unread:
            if any(descriptor == self._process for descriptor, _ in poll.poll()):
                raise AbandonedError
            part = os.read(COMMANDS, 1 << 16)
            if not part:
                raise AbandonedError
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        return line


def _open_process(pid: int) -> int | None:
    """Return a descriptor that can be read once a process has ended; None where the kernel gives none."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


class Warden:
    """Runs programs within the walls that are asked for and that there are."""

    def __init__(self, settings: Settings, caller: Caller) -> None:
        self.settings, self.caller = settings, caller
        self.layers = set(settings.layers)
        self.bounds = walls.Bounds(settings.cpu_seconds, settings.memory_mib, settings.processes, settings.file_mib)
        # Below the descriptors that `_place` uses, so that it closes these in every child.
        self.exam, self.reasons = os.dup(settings.exam), os.dup(settings.reasons)
        os.close(settings.exam)
        os.close(settings.reasons)
        self.null = os.open(os.devnull, os.O_RDWR)
        self.pid = os.getpid()
        self.uids = walls.spare_uids() if "uid" in self.layers else None
        if not self.uids:
            self.layers.discard("uid")
        self.landlock = walls.landlock_version() if "landlock" in self.layers else 0
        if not self.landlock:
            self.layers.discard("landlock")
        if not seccomp_available():
            self.layers.discard("seccomp")
        self.readable = walls.python_folders()
        self.namespace = None
        if "namespaces" in self.layers:
            self.namespace = walls.enter_namespaces()
            walls.enter_root(self.readable)
            self.readable = ["/"]

    def run(self, program: str, entry_point: str) -> dict[str, Any]:
        """Run one program beside the examiner of the exam that comes next, and return its outcome."""
        verdict, verdict_end = os.pipe()
        output, output_end = os.pipe()
        requests, requests_end = os.pipe()
        answers, answers_end = os.pipe()
        if self.namespace is not None:
            walls.mount_folder(self.settings.file_mib)
        started, running = time.monotonic(), []
        try:
            files = (self.null, self.null, self.null, requests_end, answers, self.exam, verdict_end, self.reasons)
            running.append(self._spawn(EXAMINER, files, lambda: examine(self.settings.output_bytes)))
            os.close(verdict_end)
            self._await_exam(verdict)
            files = (self.null, output_end, output_end, requests, answers_end)
            running.append(self._spawn(PROGRAM, files, lambda: serve(program, entry_point)))
            for descriptor in (output_end, requests, requests_end, answers, answers_end):
                os.close(descriptor)
            started = time.monotonic()
            grade, reason = self._watch(verdict, output, started + self.settings.wall_seconds)
        finally:
            # Reaped too: where nobody takes care of orphans, they would stay zombies.
            seconds = time.monotonic() - started
            ended = [_end(pid) for pid in running]
        # Who had ended already has kept its own status.
        how_examiner, how = ended
        if grade == GONE:
            grade, reason = self._explain(how, "")
        elif grade == NO_VERDICT:
            grade, reason = self._explain(how_examiner, "its tests ")
        if self.namespace is not None:
            walls.unmount_folder()
        os.close(verdict)
        os.close(output)
        return {"grade": grade, "reason": reason, "seconds": seconds}

    def _spawn(self, role: int, files: Sequence[int], run: Callable[[], NoReturn]) -> int:
        """Start `run` within the walls, with `files` as its descriptors 0, 1, ... and no others."""
        pid = os.fork() if self.namespace is None else walls.fork_apart(self.namespace)
        if pid:
            return pid
        # Nothing may get from here back into the warden's loop.
        with contextlib.suppress(BaseException):
            _place(files)
            self._isolate(role)
            random.seed(0)
            run()
        os._exit(70)

    def _isolate(self, role: int) -> None:
        apart = self.namespace is not None
        os.setsid()
        os.chdir(walls.WRITABLE if apart else "/")
        # Without users of their own, the examiner, the warden and its parent are counted too.
        walls.set_limits(self.bounds, 0 if self.uids else 3)
        walls.gain_nothing()
        if self.landlock:
            writable = [walls.WRITABLE] if apart and role == PROGRAM else []
            walls.restrict_files(self.landlock, self.readable, writable)
        walls.drop_privileges(self.uids[role] if self.uids else None)
        if not apart:
            walls.die_with_parent(self.pid)
        if "seccomp" in self.layers:
            more = self.settings.processes > 1 and role == PROGRAM
            restrict_calls(filter_program(processes=more, pid=os.getpid()))

    def _await_exam(self, verdict: int) -> None:
        poll = select.poll()
        poll.register(verdict, select.POLLIN)
        self.caller.register(poll)
        for descriptor, _ in poll.poll():
            self.caller.check(descriptor)
        if not os.read(verdict, 1):
            raise RuntimeError("the examiner ended before it had read its exam")

    def _watch(self, verdict: int, output: int, deadline: float) -> tuple[str, str | None]:
        """Wait for a grade; one that the examiner gives has no reason here. Who runs or prints too long gets none."""
        word, printed, most = b"", 0, self.settings.output_bytes
        too_much = ("crashed", f"printed more than {most:,} bytes")
        poll = select.poll()
        self.caller.register(poll)
        poll.register(verdict, select.POLLIN)
        poll.register(output, select.POLLIN)
        while not word.endswith(b"\n"):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return "timed_out", f"ran for {self.settings.wall_seconds:g} s"
            for descriptor, _ in poll.poll(remaining * 1000 + 1):
                self.caller.check(descriptor)
                data = os.read(descriptor, 1 << 16)
                if descriptor == verdict:
                    word += data
                    if not data:
                        return NO_VERDICT, None
                elif data:
                    printed += len(data)
                    if printed > most:
                        return too_much
                else:
                    poll.unregister(output)
        # What was printed before the last answer is still in the pipe, and counts.
        os.set_blocking(output, False)
        with contextlib.suppress(BlockingIOError):
            while data := os.read(output, 1 << 16):
                printed += len(data)
                if printed > most:
                    return too_much
        return word.decode().strip(), None

    def _explain(self, how: tuple[int, float], whose: str) -> tuple[str, str]:
        """Return grade and reason of a process that ended by itself, from its wait status and seconds of CPU time."""
        status, cpu_seconds = how
        code = os.waitstatus_to_exitcode(status)
        # The kernel's two accounts of CPU time differ: it kills by one and reports the other.
        if code == -signal.SIGKILL and cpu_seconds >= self.settings.cpu_seconds / 2:
            return "timed_out", f"{whose}used {self.settings.cpu_seconds} s of CPU time"
        if code >= 0:
            return "crashed", f"{whose}ended with exit code {code}"
        named = {one.value: one.name for one in signal.Signals}
        return "crashed", f"{whose}ended by {named.get(-code, f'signal {-code}')}"


def _place(files: Sequence[int]) -> None:
    """Make `files` the descriptors 0, 1, ... and close all others."""
    # First out of the way, so that none is overwritten before it is copied.
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 100) for descriptor in files]
    for i, descriptor in enumerate(high):
        os.dup2(descriptor, i)
    os.closerange(len(files), 200)


def _end(pid: int) -> tuple[int, float]:
    """Kill a process; return its wait status and the seconds of CPU time it used."""
    os.kill(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    return status, usage.ru_utime + usage.ru_stime


def main() -> None:
    """Set up, say which layers are in force, then run job after job until there are no more.

    Every line that is read or written is JSON. Where something fails that is not the program's doing, the last line
    says what.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        caller = Caller()
        warden = Warden(Settings(**json.loads(caller.read_line())), caller)
        for name in PRELOADED.split():
            importlib.import_module(name)
        gc.freeze()
        _reply({"layers": sorted(warden.layers), "uids": warden.uids, "root": os.geteuid() == 0})
        while True:
            _reply(warden.run(**json.loads(caller.read_line())))
    except AbandonedError:
        pass
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        _reply({"fault": f"{type(error).__name__}: {error} ({os.path.basename(where.filename)}, line {where.lineno})"})


def _reply(message: dict[str, Any]) -> None:
    write(REPLIES, json.dumps(message).encode() + b"\n")
