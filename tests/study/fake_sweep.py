"""A trial that only pretends to train, and a program that runs a sweep of such trials and kills it.

    python fake_sweep.py RUNS SWEEP.yaml [STEPS ...]

runs the sweep and kills it with signal 9 while it makes its databases, then once for each of STEPS, killed a little
after its trials have logged so many, then to its end.
"""

import errno
import io
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from peft_study.igsm.families import NANO
from peft_study.models.places import base_folder, fingerprint
from peft_study.records import Stopped
from peft_study.study.config import TrialConfig, config_hash
from peft_study.study.plan import build_plan
from peft_study.study.sweep import run_sweep
from peft_study.study.sweep_file import read_sweep
from peft_study.telling import Progress

NUM_STEPS = 12
STEPS_OF_CHECKPOINT = 4


def nothing_happens(trial: str, step: int) -> None:
    """Let a step pass."""


def worth(config: TrialConfig) -> float:
    """Return what the results of a config are made from, in [0, 1): its loss grows with it."""
    return int(config_hash(config), 16) / 16**10


class FakeTrial:
    """Pretends to train for `seconds`, with checkpoints; what it writes is a function of the config alone."""

    def __init__(self, seconds: float = 0.0, failing: tuple[str, ...] = ()) -> None:
        self.seconds, self.failing = seconds, failing
        self.ran: list[str] = []
        self.at_step: Callable[[str, int], None] = nothing_happens

    def __call__(
        self,
        config: TrialConfig,
        folder: Path,
        *,
        trial: str,
        arm: str,
        sweep: str,
        on_progress: Callable[[Progress], None],
        on_metrics: Callable[[int, dict[str, float]], None],
    ) -> dict[str, Any]:
        """Run the trial; the contract is that of `study.sweep.TrialRunner`."""
        self.ran.append(trial)
        folder.mkdir(parents=True, exist_ok=True)
        names = {"trial": trial, "arm": arm, "sweep": sweep}
        base = worth(config)
        try:
            if arm in self.failing:
                raise RuntimeError("loss is nan")
            self._train(config, folder, trial, base, on_progress, on_metrics)
            result = make_result(config, value=base, **names)
        except Exception as error:  # as the real one: every error of a trial is a result
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            result = make_result(config, value=base, reason=f"{type(error).__name__}: {error}", **names)
        if (folder / "checkpoint" / "metrics.jsonl").exists():
            shutil.copyfile(folder / "checkpoint" / "metrics.jsonl", folder / "metrics.jsonl")
        write(folder / "result.json", json.dumps(result))
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
        return result

    def _train(
        self,
        config: TrialConfig,
        folder: Path,
        trial: str,
        base: float,
        on_progress: Callable[[Progress], None],
        on_metrics: Callable[[int, dict[str, float]], None],
    ) -> None:
        checkpoint, metrics_file = folder / "checkpoint" / "step", folder / "checkpoint" / "metrics.jsonl"
        checkpoint.parent.mkdir(exist_ok=True)
        step = int(checkpoint.read_text()) if checkpoint.exists() else 0
        lines = metrics_file.read_text().splitlines()[:step] if metrics_file.exists() else []
        total = config.training.tokens
        while step < NUM_STEPS:
            tokens = (step + 1) * total // NUM_STEPS
            metrics = {"train/loss": 1 + base / (step + 1), "validation/loss": 2 + base}
            lines.append(json.dumps({"tokens": tokens, **metrics}))
            write(metrics_file, "\n".join(lines) + "\n")
            try:
                on_metrics(tokens, metrics)
            except Stopped:
                write(checkpoint, str(step + 1))
                raise
            on_progress(Progress(tokens, total, metrics["train/loss"], "train"))
            self.at_step(trial, step)
            time.sleep(self.seconds / NUM_STEPS)
            step += 1
            if step % STEPS_OF_CHECKPOINT == 0:
                write(checkpoint, str(step))
        on_progress(Progress(total, total, float("nan"), "evaluate"))
        np.savez(folder / "outcomes.npz", **make_outcomes(config, base))
        (folder / "adapter").mkdir(exist_ok=True)
        write(folder / "adapter" / "adapter_config.json", "{}")


HEADLINE = NANO.headline_op
[OTHER] = set(NANO.ood_ops) - {HEADLINE}
SETS = (f"id_{NANO.op_max}", f"ood_{OTHER}", f"ood_{HEADLINE}")


def make_outcomes(config: TrialConfig, value: float) -> dict[str, Any]:
    """Return what the intervals of the report are made from."""
    rng, n = np.random.default_rng(int(1e9 * value)), config.evaluation.n
    if config.skill.name == "correction":
        return {f"correct_{name}": (rng.random(n) < value).astype(np.uint8) for name in SETS}
    label = np.tile(np.array([0, 0, 1], np.uint8), n)
    score = (label * value + rng.random(3 * n)).astype(np.float32)
    columns = {"score": score, "label": label, "problem": np.repeat(np.arange(n, dtype=np.int32), 3)}
    return {f"detect_injected_{HEADLINE}_{name}": column for name, column in columns.items()}


def make_result(
    config: TrialConfig, *, trial: str, arm: str, sweep: str, value: float, reason: str = ""
) -> dict[str, Any]:
    """Return what a trial leaves behind."""
    correction = config.skill.name == "correction"
    where, metric = ("ood", "accuracy") if correction else ("injected", "detect_auroc")
    common = {"split": config.evaluation.split, "metric": metric, "low": 0.0, "high": 1.0, "n": config.evaluation.n}
    stream = {**common, "metric": "loss", "set": "stream", "op": None, "value": 2 + value}
    ops = {OTHER: value / 2, HEADLINE: value}
    return {
        "trial": trial,
        "arm": arm,
        "sweep": sweep,
        "status": "failed" if reason else "finished",
        "reason": reason,
        "config": config.model_dump(mode="json"),
        "provenance": {
            "commit": "0123abc",
            "base_weights": fingerprint(base_folder(config.base, config.data.family)),
        },
        "tokens": config.training.tokens,
        "tokens_with_loss": config.training.tokens // 3,
        "trainable_params": 1_000,
        "seconds": 1.5,
        "peak_memory_mib": 100.0,
        "converged": True,
        "measures": []
        if reason
        else [{**common, "set": where, "op": op, "value": v} for op, v in ops.items()] + [stream],
    }


def write(path: Path, text: str) -> None:
    """Write `text` to `path`: the whole of it, or nothing."""
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    os.replace(new, path)


def steps_logged(folder: Path) -> int:
    """Return how many steps the trials in `folder` have logged."""
    while True:
        try:
            return sum(len(path.read_text().splitlines()) for path in folder.glob("*/**/metrics.jsonl"))
        except FileNotFoundError:  # A trial has ended meanwhile, and its checkpoint is gone: look again.
            continue


def main(runs: Path, sweep: str, steps: list[int]) -> None:
    """Run, kill, and run to the end; every run is a process of its own."""
    import mlflow  # noqa: F401  # Imported once, so that a process forked off is at work at once.
    import optuna  # noqa: F401

    plan, rng = build_plan(read_sweep(sweep)), random.Random(0)
    for kill_after in [0, *steps, None]:
        logged = steps_logged(runs / plan.sweep.name)
        child = os.fork()
        if child == 0:
            run_sweep(plan, runs, run=FakeTrial(0.3), workers=2, console=Console(file=io.StringIO()))
            os._exit(0)
        if kill_after is not None:
            # The first is killed while MLflow makes its tables.
            while kill_after == 0 and not (runs / ".mlflow.db.new").exists():
                time.sleep(0.001)
            while steps_logged(runs / plan.sweep.name) < logged + kill_after:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.1))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], [int(text) for text in sys.argv[3:]])
