"""Two ways to do the same work, timed in turn: A B A B, each in a process of its own that waits while the other works.

A side is a function that takes a `Gate` and calls it after every unit of work (a step, a batch). Everything before the
units that count, compiling and warming up, is timed by itself and printed.
"""

import json
import math
import multiprocessing
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import kind

RESULTS = Path(__file__).parent / "results"
BOOTSTRAPS = 2_000


class Gate:
    """Called by a side after each unit of work; returns when the next may begin."""

    def __init__(self, pipe: Connection, warm_up: int) -> None:
        self.pipe, self.left = pipe, warm_up
        self.started = time.perf_counter()

    def __call__(self, check: float) -> None:
        """End a unit. `check` is what both sides have to agree on: a loss, or a digest of an output."""
        self.left -= 1
        if self.left > 0:
            return
        self.pipe.send((time.perf_counter() - self.started, check))
        self.left = self.pipe.recv()
        if self.left == 0:
            raise SystemExit
        self.started = time.perf_counter()


@dataclass(frozen=True)
class Side:
    """One way to do the work."""

    name: str
    run: Callable[..., None]
    """At the top of a module: called as `run(gate, **options)` in a new process."""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Row:
    """A measured ratio."""

    name: str
    ours: float
    """Seconds of a unit, median over the blocks."""
    peer: float
    ratio: float
    """The peer's time over ours, median over the blocks: larger is better."""
    low: float
    """95 % bootstrap interval of the ratio."""
    high: float
    target: float | None
    unit: str
    peer_name: str
    checks: tuple[float, float]
    """What the sides ended with; equal within `parity`."""
    warm_up: tuple[float, float]
    """Seconds before the units that count."""
    versions: dict[str, str]
    commit: str


def _child(pipe: Connection, side: Side, warm_up: int) -> None:
    side.run(Gate(pipe, warm_up), **side.options)


def _start(side: Side, warm_up: int) -> tuple[Connection, BaseProcess]:
    """Start a side in a process of its own; it warms up, says so, and waits."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_child, args=(there, side, warm_up), daemon=True)
    process.start()
    there.close()
    return here, process


def ratio_interval(ours: Sequence[float], peer: Sequence[float]) -> tuple[float, float, float]:
    """Return the median of the peer's time over ours, block by block, with its 95 % bootstrap interval."""
    ratios = np.array(peer) / np.array(ours)
    draws = np.random.default_rng(0).choice(ratios, (BOOTSTRAPS, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)


def race(
    name: str,
    ours: Side,
    peer: Side,
    *,
    unit: str,
    target: float | None = None,
    blocks: int = 7,
    units: int = 2,
    warm_up: int = 2,
    parity: float | None = 0.01,
) -> Row:
    """Time both sides in turn, `blocks` times `units` units each, and return the row.

    Raises RuntimeError where what they ended with differs by more than the share `parity` (None: not compared).
    """
    pipes, processes = [], []
    warm: list[float] = []
    times: list[list[float]] = [[], []]
    checks = [math.nan, math.nan]
    try:
        for side in (ours, peer):
            pipe, process = _start(side, warm_up)
            pipes.append(pipe)
            processes.append(process)
            warm.append(pipe.recv()[0])
        for _ in range(blocks):
            for at, pipe in enumerate(pipes):
                pipe.send(units)
                seconds, checks[at] = pipe.recv()
                times[at].append(seconds / units)
    finally:
        for pipe, process in zip(pipes, processes, strict=True):
            if process.is_alive():
                pipe.send(0)
            process.join(timeout=10)
            process.kill()
    if parity is not None and abs(checks[0] - checks[1]) > parity * abs(checks[1]):
        raise RuntimeError(f"{name}: {ours.name} ended with {checks[0]:.6g}, {peer.name} with {checks[1]:.6g}")
    ratio, low, high = ratio_interval(times[0], times[1])
    return Row(
        name,
        statistics.median(times[0]),
        statistics.median(times[1]),
        ratio,
        low,
        high,
        target,
        unit,
        peer.name,
        (checks[0], checks[1]),
        (warm[0], warm[1]),
        versions(),
        commit(),
    )


def alone(side: Side, *, units: int = 5, warm_up: int = 3) -> float:
    """Return the seconds of a unit, the median of `units`, of one side that has the machine to itself."""
    pipe, process = _start(side, warm_up)
    try:
        pipe.recv()
        times = []
        for _ in range(units):
            pipe.send(1)
            times.append(pipe.recv()[0])
        return statistics.median(times)
    finally:
        process.kill()
        process.join()


def versions() -> dict[str, str]:
    """Return the versions of what was measured, and the machine."""
    names = ("torch", "transformers", "peft", "accelerate", "optuna")
    found = {name: version(name) for name in names}
    found |= {"python": platform.python_version(), "processor": torch.cpu.get_capabilities().get("cpu_name", "")}
    return found | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def commit() -> str:
    """Return the commit that was measured."""
    asked = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


def show(row: Row) -> str:
    """Return a row as one line."""
    goal = "" if row.target is None else f" (goal {row.target:g})"
    return (
        f"{row.name:34} {row.ratio:6.2f} [{row.low:.2f}, {row.high:.2f}]{goal}  ours {row.ours:.4g} s, {row.peer_name} "
        f"{row.peer:.4g} s {row.unit}; warm-up {row.warm_up[0]:.0f} s, {row.warm_up[1]:.0f} s; "
        f"ended with {row.checks[0]:.5g}, {row.checks[1]:.5g}"
    )


def write(rows: Sequence[Row], name: str) -> Path:
    """Write rows to `results/<machine kind>-<name>.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{kind()}-{name}.json"
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return path
