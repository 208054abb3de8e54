"""`make bench-long`: whole sweeps beside Optuna with peft and transformers' Trainer; goes on where it was stopped.

Two questions: how long 16 trials of equal tokens take, and how long it takes to know the best of 27 arms to within a
standard error of its loss: ours halves them on the way, the other side trains all. Nothing is left out as warm-up.
Every run of a side is kept under `runs/bench-long/<commit>`; delete that to measure anew. Prints a table and writes
`benchmarks/results/<machine kind>-long.json`.
"""

import argparse
import json
import math
import multiprocessing
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import sweep_sides
from benchmarks.machine import roofline
from benchmarks.race import Row, commit, ratio_interval, show, versions, write
from benchmarks.sweep_sides import Grid, Outcome
from peft_study.files import write_atomic
from peft_study.study.launch import default_workers
from peft_study.training.machine import bf16_speedup, usable_cores

KEPT = Path("runs/bench-long")
BASE = "checkpoints/nano-error-free-seed0"
TOKENS = 131_072
SWEEP = Grid((1, 4, 16, 64), (3e-4, 1e-3, 3e-3, 1e-2), TOKENS, BASE)
ARMS = Grid((1, 4, 16), (1e-4, 3e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 3e-2), TOKENS, BASE)
TUNING = Grid((4,), (1e-3,), 32_768, BASE)
HALVING = {"factor": 3, "rungs": 2}


def _child(side: Callable[..., Outcome], grid: Grid, options: dict[str, Any], path: Path) -> None:
    write_atomic(path, json.dumps(side(grid, **options)._asdict()))


def once(name: str, side: Callable[..., Outcome], grid: Grid, **options: Any) -> Outcome:
    """Return how a side did, from `KEPT` where it has been measured, else from a new process."""
    path = KEPT / commit() / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        process = multiprocessing.get_context("spawn").Process(target=_child, args=(side, grid, options, path))
        process.start()
        process.join()
        if process.exitcode:
            raise RuntimeError(f"{name} ended with exit code {process.exitcode}; what was measured before it is kept")
    found = Outcome(**json.loads(path.read_text()))
    print(f"  {name}: {found.seconds:.0f} s", flush=True)
    return found


def tuned_peer(threads: int) -> dict[str, Any]:
    """Return the settings with which the peer takes least time for a short trial; compiling takes longer than that."""
    halves = (False, True) if torch.cuda.is_available() or bf16_speedup() > 1 else (False,)
    choices = [
        {"threads": threads, "attention": attention, "bf16": half} for attention in ("sdpa", "eager") for half in halves
    ]
    times = {
        index: once(f"tuning-{choice['attention']}{'-bf16' * choice['bf16']}", sweep_sides.peer, TUNING, **choice)
        for index, choice in enumerate(choices)
    }
    return choices[min(times, key=lambda index: times[index].seconds)]


def means(found: Outcome) -> dict[str, float]:
    """Return the loss of each cell that was trained to the end."""
    return {cell: statistics.fmean(values) for cell, values in found.losses.items()}


def row_of(
    name: str, ours: list[Outcome], peer: list[Outcome], *, unit: str, target: float, checks: tuple[float, float]
) -> Row:
    """Return the row of repeated runs of both sides."""
    mine, theirs = [found.seconds for found in ours], [found.seconds for found in peer]
    ratio, low, high = ratio_interval(mine, theirs)
    return Row(
        name,
        statistics.median(mine),
        statistics.median(theirs),
        ratio,
        low,
        high,
        target,
        unit,
        "Trainer",
        checks,
        (0.0, 0.0),
        versions(),
        commit(),
    )


def whole_sweep(repeats: int, options: dict[str, Any], workers: int) -> Row:
    """Return the row of 16 trials of equal tokens; both sides have to end with the same losses."""
    ours, peer = [], []
    for repeat in range(repeats):
        ours.append(once(f"sweep-ours-{repeat}", sweep_sides.ours, SWEEP, workers=workers))
        peer.append(once(f"sweep-peer-{repeat}", sweep_sides.peer, SWEEP, **options))
    checks = (statistics.fmean(means(ours[0]).values()), statistics.fmean(means(peer[0]).values()))
    if not math.isclose(*checks, rel_tol=0.01):
        raise RuntimeError(f"the sweeps end with other losses: ours {checks[0]:.5g}, peer {checks[1]:.5g}")
    return row_of("sweep of 16 trials", ours, peer, unit="the sweep", target=3.0, checks=checks)


def decision(repeats: int, options: dict[str, Any], workers: int) -> Row:
    """Return the row of the time until the best of 27 arms is known; RuntimeError where ours picks a worse one."""
    ours, peer = [], []
    for repeat in range(repeats):
        ours.append(once(f"decision-ours-{repeat}", sweep_sides.ours, ARMS, workers=workers, halving=HALVING))
        peer.append(once(f"decision-peer-{repeat}", sweep_sides.peer, ARMS, **options))
    whole, finished = means(peer[0]), means(ours[0])
    picked, best = min(finished, key=finished.__getitem__), min(whole, key=whole.__getitem__)
    windows = peer[0].losses[best]
    error = statistics.stdev(windows) / math.sqrt(len(windows))
    print(
        f"  the grid's best: {best}, loss {whole[best]:.5f}, standard error {error:.5f}; ours picks {picked}",
        flush=True,
    )
    if whole[picked] > whole[best] + error:
        raise RuntimeError(f"ours picks {picked}, whose loss {whole[picked]:.5f} is more than a standard error worse")
    checks = (finished[picked], whole[picked])
    if not math.isclose(*checks, rel_tol=0.01):
        raise RuntimeError(f"{picked} ends with other losses: ours {checks[0]:.5g}, peer {checks[1]:.5g}")
    return row_of("time to decision, 27 arms", ours, peer, unit="the decision", target=6.0, checks=checks)


def main() -> None:
    """Measure what is missing, print and write."""
    threads = usable_cores()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side")
    asked = parser.parse_args()
    roof = roofline(threads, rows=2_048, width=128, mlp_width=320)
    print("matrix products:", ", ".join(f"{k} {v:.0f} GFLOP/s" for k, v in roof.items()), flush=True)
    options = tuned_peer(threads)
    rows = [measure(asked.repeats, options, default_workers()) for measure in (whole_sweep, decision)]
    for row in rows:
        print(show(row), flush=True)
    print(f"wrote {write(rows, 'long')}")


if __name__ == "__main__":
    main()
