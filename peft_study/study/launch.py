"""Workers that run trials side by side while one process keeps the books.

A trial computes with one thread whatever the machine has: results then do not depend on the number of cores, and two
one-thread processes do more work than one process of two threads (LOG.md). On a GPU there is one worker. With
`num=0` the one worker is a thread of this process, for debugging and tests. A worker with several seats runs as many
trials at once, whose adapters can then train in one bank.
"""

import ctypes
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
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


def _work_for(parent: int, pipe: Connection, run: Any, seats: int) -> None:
    """Be a worker process of the process `parent`."""
    _die_with_parent(parent)
    _work(pipe, run, seats, in_thread=False)


class _Answer(NamedTuple):
    """What a job hears after its metrics."""

    trial: str
    stop: str
    """Why it is to leave its worker; empty where it goes on."""


class _Desk:
    """Where a worker talks with the process that keeps the books."""

    def __init__(self, pipe: Connection, *, in_thread: bool) -> None:
        self.pipe, self.in_thread = pipe, in_thread
        self.speaks = threading.Lock()
        self.answers: dict[str, queue.SimpleQueue[str]] = {}
        """By trial, where there are several seats; else whoever asks reads the answer from the pipe."""

    @contextmanager
    def listener(self) -> Iterator[None]:
        """End where nobody listens any more: the pipe to a killed parent closes before the kernel ends this worker."""
        try:
            yield
        except (OSError, EOFError):
            if not self.in_thread:
                os._exit(1)
            raise SystemExit(1) from None  # no Exception, which a trial would take for its own failure

    def say(self, job: Job, kind: str, value: Any) -> None:
        """Send what an event says of `job`."""
        with self.listener(), self.speaks:
            self.pipe.send((job.trial, kind, value))

    def ask(self, job: Job, kind: str, value: Any) -> str:
        """The same, and return the answer."""
        self.say(job, kind, value)
        if job.trial in self.answers:
            return self.answers[job.trial].get()
        with self.listener():
            return self.pipe.recv().stop


def _work(pipe: Connection, run: Any, seats: int, *, in_thread: bool) -> None:
    """Run jobs from `pipe` until it closes: one at a time, or with several seats each in a thread of its own."""
    desk = _Desk(pipe, in_thread=in_thread)
    while True:
        try:
            heard: Job | _Answer = pipe.recv()
        except EOFError:
            return
        if isinstance(heard, _Answer):
            desk.answers[heard.trial].put(heard.stop)
        elif seats > 1:
            desk.answers[heard.trial] = queue.SimpleQueue()
            threading.Thread(target=_do, args=(heard, run, desk), daemon=True).start()
        else:
            _do(heard, run, desk)


def _do(job: Job, run: Any, desk: _Desk) -> None:
    """Run one job and say how it ended."""
    last = 0.0

    def on_progress(report: Any) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > PROGRESS_SECONDS or report.phase != "train":
            last = now
            desk.say(job, "progress", report)

    def on_metrics(step: int, metrics: dict[str, float]) -> None:
        if stop := desk.ask(job, "metrics", (step, metrics)):
            raise Stopped(stop)

    names = {"trial": job.trial, "arm": job.arm, "sweep": job.sweep}
    try:
        result = run(job.config, job.folder, **names, on_progress=on_progress, on_metrics=on_metrics)
    except Stopped as stopped:
        desk.say(job, "stopped", str(stopped))
    except BaseException as error:  # whatever it is, the process that keeps the books decides
        desk.say(job, "error", error)
    else:
        desk.say(job, "result", result)


@dataclass(slots=True)
class _Worker:
    process: BaseProcess | None
    """None for a thread."""
    pipe: Connection
    jobs: dict[str, Job] = field(default_factory=dict)
    """By trial."""


def _died(worker: _Worker) -> WorkerDiedError:
    """Return the error that says which trials a worker ended with, and how."""
    assert worker.process is not None
    worker.process.join()
    return WorkerDiedError(
        f"the worker of trial {', '.join(worker.jobs)} ended with exit code {worker.process.exitcode} "
        "(killed, or out of memory?); run the same command again to go on"
    )


class Workers:
    """Up to `num` worker processes of some `seats`, started when there is a job for them; one thread with `num=0`.

    With several seats `run` is called in several threads of a worker at once.
    """

    def __init__(self, num: int, run: Any, *, seats: int = 1) -> None:
        self.num, self.run, self.seats, self.in_thread = max(1, num), run, seats, num == 0
        self.workers: list[_Worker] = []

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            if worker.process is not None and worker.jobs:
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
        return [job for worker in self.workers for job in worker.jobs.values()]

    @property
    def has_room(self) -> bool:
        """Whether a further job could start at once."""
        return len(self.running) < self.num * self.seats

    def submit(self, job: Job) -> None:
        """Start `job`; there must be room."""
        worker = min(self.workers, key=lambda each: len(each.jobs), default=None)
        if worker is None or (worker.jobs and len(self.workers) < self.num):
            worker = self._start()
        worker.jobs[job.trial] = job
        self._send(worker, job)

    def _send(self, worker: _Worker, message: Job | _Answer) -> None:
        try:
            worker.pipe.send(message)
        except OSError:
            # Not the pipe to whoever reads our output, as a BrokenPipeError would be taken for.
            raise _died(worker) from None

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        if self.in_thread:
            work = partial(_work, theirs, self.run, self.seats, in_thread=True)
            threading.Thread(target=work, daemon=True).start()
            self.workers.append(_Worker(None, ours))
            return self.workers[-1]
        process = context.Process(target=_work_for, args=(os.getpid(), theirs, self.run, self.seats), daemon=True)
        process.start()
        theirs.close()
        self.workers.append(_Worker(process, ours))
        return self.workers[-1]

    def events(self) -> Iterator[Event]:
        """Wait until a worker says something and yield what is there; answer 'metrics' with `go_on`."""
        busy = {worker.pipe: worker for worker in self.workers if worker.jobs}
        for pipe in wait(list(busy), timeout=1.0):
            worker = busy[pipe]  # pyright: ignore[reportArgumentType]
            try:
                trial, kind, value = worker.pipe.recv()
            except (EOFError, ConnectionResetError):
                raise _died(worker) from None
            job = worker.jobs[trial] if kind in ("progress", "metrics") else worker.jobs.pop(trial)
            yield Event(job, kind, value)

    def go_on(self, job: Job, *, stop: str = "") -> None:
        """Let a worker that reported metrics go on, or with `stop` leave its trial for that reason."""
        worker = next(worker for worker in self.workers if job.trial in worker.jobs)
        self._send(worker, _Answer(job.trial, stop))
