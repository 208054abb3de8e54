"""`make bench`: training, adapters side by side, generation and sweeps, each beside what a user would otherwise take.

Peers are tuned first: each is timed in several settings, the fastest runs the race. Prints a table, writes
`benchmarks/results/cpu-throughput.json` (`cuda-` on a GPU), and says what matrix products reach on this machine.
"""

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import decoding_sides, orchestration_sides, training_sides
from benchmarks.race import Row, Side, alone, race, show, write
from peft_study.training.machine import bf16_speedup

BASE = Path("checkpoints/nano-error-free-seed0")
ATTENTIONS = ("sdpa", "eager")
"""Of transformers' Trainer."""


def timed(sides: Sequence[Side]) -> list[tuple[float, Side]]:
    """Return the sides with the seconds that each takes alone, the fastest first, and print them."""
    found = sorted(((alone(side), side) for side in sides), key=lambda pair: pair[0])
    print("  tuning:", ", ".join(f"{side.name} {seconds:.3g} s" for seconds, side in found), flush=True)
    return found


def trainer(options: dict[str, Any], **settings: Any) -> Side:
    """Return transformers' Trainer with some settings."""
    name = f"Trainer({', '.join(f'{k}={v}' for k, v in settings.items())})"
    return Side(name, training_sides.hf_trainer, options | settings)


def tuned_trainer(options: dict[str, Any]) -> Side:
    """Return transformers' Trainer with the settings that are the fastest here.

    Precision is settled before compiling, which takes most of the time: where products are faster in bf16, so are
    their compiled layers.
    """
    halves = (False, True) if torch.cuda.is_available() or bf16_speedup() > 1 else (False,)
    found = timed([trainer(options, attention=each, bf16=half) for each in ATTENTIONS for half in halves])
    half = found[0][1].options["bf16"]
    found += timed([trainer(options, attention=each, bf16=half, compiled=True) for each in ATTENTIONS])
    return min(found, key=lambda pair: pair[0])[1]


def pretraining(shape: str, windows: int, threads: int) -> list[Row]:
    """Return the rows of pretraining: the Trainer as it comes, and tuned."""
    options = {"shape": shape, "method": {"name": "full"}, "windows": windows, "threads": threads}
    ours = Side("ours", training_sides.ours, options)
    unit = f"a step of {windows} windows"
    return [
        race(f"pretraining {shape}, defaults", ours, trainer(options), unit=unit, target=3.0),
        race(f"pretraining {shape}, best", ours, tuned_trainer(options), unit=unit, target=1.3),
    ]


def one_adapter(windows: int, threads: int) -> Row:
    """Return the row of one adapter of rank 16 in all linear layers."""
    options = {"shape": "nano", "method": {"name": "lora", "rank": 16}, "windows": windows, "threads": threads}
    return race(
        "LoRA r16 nano, best",
        Side("ours", training_sides.ours, options),
        tuned_trainer(options),
        unit=f"a step of {windows} windows",
        target=2.0,
    )


def full_over_adapter(windows: int, threads: int) -> Row:
    """Return the row of our own full step over our own step of a small adapter, where the model is large."""
    shared = {"shape": "10M", "windows": windows, "threads": threads}
    lora = Side("LoRA r4", training_sides.ours, shared | {"method": {"name": "lora", "rank": 4}})
    full = Side("full", training_sides.ours, shared | {"method": {"name": "full"}})
    return race("full over LoRA r4, 10M", lora, full, unit=f"a step of {windows} windows", target=1.33, parity=None)


def adapters_together(windows: int, threads: int) -> Row:
    """Return the row of the bank against one adapter after another."""
    options = {
        "shape": "nano",
        "ranks": [1, 4, 16, 16],
        "windows": windows,
        "threads": threads,
    }
    together = Side("bank", training_sides.bank, options)
    apart = Side("one by one", training_sides.one_by_one, options)
    return race(f"bank of 4, {windows} windows each", together, apart, unit="a step of all", target=1.5, parity=1e-4)


def generation(threads: int, prompts: int = 64) -> list[Row]:
    """Return the rows of generation."""
    base = str(BASE) if BASE.is_dir() else None
    shared: dict[str, Any] = {"base": base, "prompts": prompts, "threads": threads}
    unit = f"{prompts} problems"
    rows = []
    for beams, name in ((1, "greedy"), (4, "beam 4")):
        options = shared | {"num_beams": beams}
        caches = [None, "static"] if beams == 1 else [None]
        peers = [
            Side(f"generate({cache or 'dynamic'} cache)", decoding_sides.transformers, options | {"cache": cache})
            for cache in caches
        ]
        peer = timed(peers)[0][1] if len(peers) > 1 else peers[0]
        ours = Side("ours", decoding_sides.ours, options)
        rows.append(race(name, ours, peer, unit=unit, target=4.0, blocks=5, units=1, warm_up=1, parity=1e-3))
    sides = [
        Side(name, decoding_sides.retry_upon_regret, shared | {"prefill_again": again})
        for name, again in (("rewind", False), ("prefill again", True))
    ]
    rows.append(race("retry upon regret", *sides, unit=unit, target=3.0, blocks=5, units=1, warm_up=1, parity=1e-3))
    return rows


def orchestration(trials: int = 16) -> list[Row]:
    """Return the rows of what a sweep costs beside its trials."""
    options, unit = {"trials": trials}, f"a study of {trials} trials"
    ours = Side("ours, Optuna and MLflow", orchestration_sides.ours, options)
    peers = {
        "Optuna alone": Side("Optuna on SQLite", orchestration_sides.optuna_alone, options),
        "Optuna and MLflow": Side("Optuna and MLflow", orchestration_sides.optuna_and_mlflow, options),
    }
    return [
        race(f"orchestration, {name}", ours, peer, unit=unit, target=10.0, blocks=5, units=1, warm_up=1)
        for name, peer in peers.items()
    ]


def roofline(threads: int) -> dict[str, float]:
    """Return what products of a layer's shape reach here, GFLOP/s by dtype."""
    torch.set_num_threads(threads)
    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        x, w = torch.randn(4096, 320).to(dtype), torch.randn(320, 864).to(dtype)
        times = []
        for _ in range(20):
            started = time.perf_counter()
            _ = x @ w
            times.append(time.perf_counter() - started)
        found[name] = 2 * 4096 * 320 * 864 / statistics.median(times) / 1e9
    return found


def main() -> None:
    """Measure, print and write."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=cores, help="CPU threads of both sides (default: all cores)")
    parser.add_argument("--only", default="", help="measure rows whose group contains this text")
    asked = parser.parse_args()
    print("matrix products:", ", ".join(f"{k} {v:.0f} GFLOP/s" for k, v in roofline(asked.threads).items()), flush=True)
    groups = {
        "pretraining-nano": lambda: pretraining("nano", 16, asked.threads),
        "pretraining-10M": lambda: pretraining("10M", 8, asked.threads),
        "adapter": lambda: [one_adapter(8, asked.threads)],
        "full-over-adapter": lambda: [full_over_adapter(8, asked.threads)],
        "bank": lambda: [adapters_together(windows, asked.threads) for windows in (8, 1)],
        "generation": lambda: generation(asked.threads),
        "orchestration": orchestration,
    }
    rows: list[Row] = []
    for group, measure in groups.items():
        if asked.only not in group:
            continue
        for row in measure():
            print(show(row), flush=True)
            rows.append(row)
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"wrote {write(rows, f'{kind}-throughput' + (f'-{asked.only}' if asked.only else ''))}")


if __name__ == "__main__":
    main()
