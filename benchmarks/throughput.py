"""`make bench`: training, adapters side by side, generation and sweeps, each beside what a user would otherwise take.

The Trainer and greedy `generate` are tuned first: timed in several settings, the fastest runs the race. Prints a
table, writes `benchmarks/results/<machine kind>-throughput.json`, and says what matrix products reach on this machine.
`make bench-gpu` is the same at the sizes that a GPU is for.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import decoding_sides, orchestration_sides, training_sides
from benchmarks.machine import roofline
from benchmarks.race import Row, Side, alone, race, show, write
from peft_study.training.machine import bf16_speedup, usable_cores

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
    rows = [
        race(f"pretraining {shape}, defaults", ours, trainer(options), unit=unit, target=3.0),
        race(f"pretraining {shape}, best", ours, tuned_trainer(options), unit=unit, target=1.3),
    ]
    size = training_sides.SHAPES[shape]
    roof = roofline(threads, rows=training_sides.tokens_of(windows), width=size.width, mlp_width=size.mlp_width)
    reached = training_sides.products(shape, windows) / rows[-1].ours / 1e9
    shares = ", ".join(f"{reached / each:.0%} of {name}'s {each:.0f}" for name, each in roof.items())
    print(f"  products of {shape}: ours reaches {reached:.0f} GFLOP/s, {shares}", flush=True)
    return rows


def one_adapter(shape: str, windows: int, threads: int) -> Row:
    """Return the row of one adapter of rank 16 in all linear layers."""
    options = {"shape": shape, "method": {"name": "lora", "rank": 16}, "windows": windows, "threads": threads}
    return race(
        f"LoRA r16 {shape}, best",
        Side("ours", training_sides.ours, options),
        tuned_trainer(options),
        unit=f"a step of {windows} windows",
        target=2.0,
    )


def full_over_adapter(shape: str, windows: int, threads: int) -> Row:
    """Return the row of our own full step over our own step of a small adapter, where the model is large."""
    shared = {"shape": shape, "windows": windows, "threads": threads}
    lora = Side("LoRA r4", training_sides.ours, shared | {"method": {"name": "lora", "rank": 4}})
    full = Side("full", training_sides.ours, shared | {"method": {"name": "full"}})
    return race(
        f"full over LoRA r4, {shape}", lora, full, unit=f"a step of {windows} windows", target=1.33, parity=None
    )


def adapters_together(shape: str, ranks: list[int], windows: int, threads: int) -> Row:
    """Return the row of the bank against one adapter after another."""
    options = {"shape": shape, "ranks": ranks, "windows": windows, "threads": threads}
    together = Side("bank", training_sides.bank, options)
    apart = Side("one by one", training_sides.one_by_one, options)
    name = f"bank of {len(ranks)}, {windows} windows each"
    unit = f"{training_sides.EVERY} steps of all"
    return race(name, together, apart, unit=unit, target=1.5, units=1, warm_up=1)


def generation(threads: int, prompts: int = 64) -> list[Row]:
    """Return the rows of generation."""
    shared = _shared(prompts, threads)
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
        rows.append(
            race(name, ours, peer, unit=f"{prompts} problems", target=4.0, blocks=5, units=1, warm_up=1, parity=0)
        )
    return rows


def regret(threads: int, prompts: int = 64) -> Row:
    """Return the row of retry upon regret: going back in the cache, or computing the prefix again."""
    shared = _shared(prompts, threads)
    sides = [
        Side(name, decoding_sides.retry_upon_regret, shared | {"prefill_again": again})
        for name, again in (("rewind", False), ("prefill again", True))
    ]
    unit = f"{prompts} problems"
    return race("retry upon regret", *sides, unit=unit, target=3.0, blocks=5, units=1, warm_up=1, parity=0)


def _shared(prompts: int, threads: int) -> dict[str, Any]:
    base = str(BASE) if BASE.is_dir() else None
    return {"base": base, "prompts": prompts, "threads": threads}


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


def groups_of(threads: int) -> dict[str, Callable[[], list[Row]]]:
    """Return what is measured on a CPU."""
    return {
        "pretraining-nano": lambda: pretraining("nano", 16, threads),
        "pretraining-10M": lambda: pretraining("10M", 8, threads),
        "adapter": lambda: [one_adapter("nano", 8, threads)],
        "full-over-adapter": lambda: [full_over_adapter("10M", 8, threads)],
        "bank": lambda: [adapters_together("nano", [1, 4, 16, 16], windows, threads) for windows in (8, 1)],
        "generation": lambda: [*generation(threads), regret(threads)],
        "orchestration": orchestration,
    }


def gpu_groups_of(threads: int) -> dict[str, Callable[[], list[Row]]]:
    """Return what is measured on a GPU."""
    return {
        "pretraining-10M": lambda: pretraining("10M", 128, threads),
        "pretraining-124M": lambda: pretraining("124M", 64, threads),
        "adapter": lambda: [one_adapter(shape, 64, threads) for shape in ("10M", "124M")],
        "full-over-adapter": lambda: [full_over_adapter("124M", 64, threads)],
        "bank": lambda: [adapters_together("10M", [1, 4, 16, 16] * 8, 8, threads)],
        "generation": lambda: [*generation(threads, prompts=512), regret(threads, prompts=512)],
        "orchestration": orchestration,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--threads", type=int, default=usable_cores(), help="CPU threads of both sides (default: all cores)"
    )
    parser.add_argument("--only", default="", help="measure rows whose group contains this text")
    parser.add_argument("--gpu", action="store_true", help="measure at the sizes that a GPU is for; needs one")
    asked = parser.parse_args(arguments)
    if asked.gpu and not torch.cuda.is_available():
        parser.error("--gpu needs a GPU that torch can use, but torch.cuda.is_available() is false; run make bench")
    groups = (gpu_groups_of if asked.gpu else groups_of)(asked.threads)
    chosen = [measure for group, measure in groups.items() if asked.only in group]
    if not chosen:
        parser.error(f"--only {asked.only} is in no group; the groups are {', '.join(groups)}")
    rows: list[Row] = []
    for measure in chosen:
        for row in measure():
            print(show(row), flush=True)
            rows.append(row)
    name = "throughput-large" if asked.gpu else "throughput"
    print(f"wrote {write(rows, name + (f'-{asked.only}' if asked.only else ''))}")


if __name__ == "__main__":
    main()
