"""Workers that run trials side by side while one process keeps the books.

A trial computes with one thread whatever the machine has: results then do not depend on the number of cores, and two
one-thread processes do more work than one process of two threads (LOG.md). On a GPU there is one worker. With
`num=0` the one worker is a thread of this process, for debugging and tests.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from peft_study.records import Stopped
from peft_study.study.config import TrialConfig

PROGRESS_SECONDS = 0.5
"""Seconds between two reports of a worker, at least."""
_PR_SET_PDEATHSIG = 1


class Job(NamedTuple):
    """A trial to run."""

    config: TrialConfig
    folder: Path
    trial: str
    arm: str
    sweep: str


class Event(NamedTuple):
    """What a worker says of its job."""

    job: Job
    kind: str
    """'progress' (a report), 'metrics' (step, values), 'result', 'stopped' (reason), 'error' (an exception)."""
    value: Any


class WorkerDiedError(RuntimeError):
    """A worker ended without a word: killed from outside, or out of memory."""


def default_workers() -> int:
    """Return how many trials run side by side here: one on a GPU, else one a core, at most four."""
    import torch

    from peft_study.training.machine import usable_cores

    if torch.cuda.is_available():
        return 1
    return max(1, min(4, usable_cores()))


def _die_with_parent(parent: int) -> None:
    """Have the kernel end this worker with its parent: an orphan would go on writing into the trial's folder."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _work_for(parent: int, pipe: Connection, run: Any) -> None:
    """Be a worker process of the process `parent`."""
    _die_with_parent(parent)
    _work(pipe, run, in_thread=False)


def _work(pipe: Connection, run: Any, *, in_thread: bool) -> None:
    """Run jobs from `pipe` until it closes."""
    last = 0.0

    @contextmanager
    def listener() -> Iterator[None]:
        """End where nobody listens any more: the pipe to a killed parent closes before the kernel ends this worker."""
        try:
            yield
        except (OSError, EOFError):
            if not in_thread:
                os._exit(1)
            raise SystemExit(1) from None  # no Exception, which a trial would take for its own failure

    def on_progress(report: Any) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > PROGRESS_SECONDS or report.phase != "train":
            last = now
            with listener():
                pipe.send(("progress", report))

    def on_metrics(step: int, metrics: dict[str, float]) -> None:
        with listener():
            pipe.send(("metrics", (step, metrics)))
            reason = pipe.recv()
        if reason:
            raise Stopped(reason)

    while True:
        try:
            job: Job = pipe.recv()
        except EOFError:
            return
        names = {"trial": job.trial, "arm": job.arm, "sweep": job.sweep}
        try:
            result = run(job.config, job.folder, **names, on_progress=on_progress, on_metrics=on_metrics)
        except Stopped as stopped:
            pipe.send(("stopped", str(stopped)))
        except BaseException as error:  # whatever it is, the process that keeps the books decides
            pipe.send(("error", error))
        else:
            pipe.send(("result", result))


@dataclass(slots=True)
class _Worker:
    process: BaseProcess | None
    """None for a thread."""
    pipe: Connection
    job: Job | None = None


class Workers:
    """Up to `num` worker processes, started when there is a job for them; one thread with `num=0`."""

    def __init__(self, num: int, run: Any) -> None:
        self.num, self.run, self.in_thread = max(1, num), run, num == 0
        self.workers: list[_Worker] = []

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            if worker.process is not None and worker.job is not None:
                worker.process.kill()
            worker.pipe.close()
        for worker in self.workers:
            if worker.process is not None:
                # An idle worker ends by itself when its pipe closes, and so tidies up what it holds.
                worker.process.join(timeout=10)
                worker.process.kill()
                worker.process.join()

    @property
    def running(self) -> list[Job]:
        """Return the jobs that run now."""
        return [worker.job for worker in self.workers if worker.job is not None]

    @property
    def has_room(self) -> bool:
        """Whether a further job could start at once."""
        return len(self.running) < self.num

    def submit(self, job: Job) -> None:
        """Start `job`; there must be room."""
        idle = next((worker for worker in self.workers if worker.job is None), None) or self._start()
        idle.job = job
        idle.pipe.send(job)

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        if self.in_thread:
            threading.Thread(target=_work, args=(theirs, self.run), kwargs={"in_thread": True}, daemon=True).start()
            self.workers.append(_Worker(None, ours))
            return self.workers[-1]
        process = context.Process(target=_work_for, args=(os.getpid(), theirs, self.run), daemon=True)
        process.start()
        theirs.close()
        self.workers.append(_Worker(process, ours))
        return self.workers[-1]

    def events(self) -> Iterator[Event]:
        """Wait until a worker says something and yield what is there; answer 'metrics' with `go_on`."""
        busy = {worker.pipe: worker for worker in self.workers if worker.job is not None}
        for pipe in wait(list(busy), timeout=1.0):
            worker = busy[pipe]  # pyright: ignore[reportArgumentType]
            job = worker.job
            assert job is not None
            try:
                kind, value = worker.pipe.recv()
            except (EOFError, ConnectionResetError):
                assert worker.process is not None
                worker.process.join()
                raise WorkerDiedError(
                    f"the worker of trial {job.trial} ended with exit code {worker.process.exitcode} (killed, or out "
                    "of memory?); run the same command again to go on"
                ) from None
            if kind not in ("progress", "metrics"):
                worker.job = None
            yield Event(job, kind, value)

    def go_on(self, job: Job, *, stop: str = "") -> None:
        """Let a worker that reported metrics go on, or with `stop` leave its trial for that reason."""
        worker = next(worker for worker in self.workers if worker.job is job)
        worker.pipe.send(stop)
