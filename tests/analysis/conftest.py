"""A made-up sweep: its outcomes are drawn from known rates, so that every number of the table can be foretold."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.rows import SweepRecord, TrialRecord, rows_of
from analysis.stats import Arrays
from analysis.table import to_frame
from peft_study.igsm.families import NANO
from peft_study.records import Status
from peft_study.rng import derive_seed
from peft_study.study.config import build_config, config_hash
from peft_study.study.sweep_file import Sweep
from peft_study.study.tracking import Tracker

PROBLEMS = 128
KNOWN, HEADLINE = NANO.op_max, NANO.headline_op
[OTHER] = set(NANO.ood_ops) - {HEADLINE}
GAP = {"correction": {"lower": "control", "upper": "upper"}, "detection": {"lower": "probe", "upper": "upper"}}
ARMS: dict[str, tuple[dict[str, Any], int, float, float]] = {
    # arm: overrides, trainable parameters, rate of right solutions, distance of wrong from right scores
    "base": ({"method.name": "none", "data.retry_rate": 0.0, "training.tokens": 0}, 0, 0.48, 0),
    "pretrained": ({"method.name": "none", "base.name": "retry", "training.tokens": 0}, 0, 0.7, 1.5),
    "control": ({"method.name": "full", "data.retry_rate": 0.0}, 1_050_000, 0.5, 0),
    "upper": ({"method.name": "full", "base.name": "retry"}, 1_050_000, 0.75, 2.2),
    "full": ({"method.name": "full"}, 1_050_000, 0.66, 1.6),
    "correction-r1": ({"method.name": "lora", "method.rank": 1}, 11_000, 0.47, 0.3),
    "correction-r4": ({"method.name": "lora", "method.rank": 4}, 42_000, 0.53, 0.5),
    "correction-r16": ({"method.name": "lora", "method.rank": 16}, 166_000, 0.58, 0.9),
    "probe": ({"method.name": "probe"}, 258, 0, 0.6),
    "detection-r1": ({"method.name": "lora", "method.rank": 1}, 11_000, 0, 1.5),
    "detection-r4": ({"method.name": "lora", "method.rank": 4}, 42_000, 0, 1.9),
    "detection-r16": ({"method.name": "lora", "method.rank": 16}, 166_000, 0, 2.05),
    "detection-full": ({"method.name": "full"}, 1_050_000, 0, 2.3),
}


def detections(prefix: str, distance: float, rng: np.random.Generator, n: int) -> Arrays:
    """Return scores of six decision points a problem, the wrong ones `distance` standard deviations higher."""
    label = rng.random(6 * n) < 0.25
    score = 1 / (1 + np.exp(-rng.normal(size=6 * n) - distance * label))
    return {
        f"{prefix}_score": score.astype(np.float32),
        f"{prefix}_label": label.astype(np.uint8),
        f"{prefix}_problem": np.repeat(np.arange(n), 6).astype(np.int32),
    }


def outcomes_of(arm: str, seed: int, n: int = PROBLEMS) -> Arrays:
    """Return the outcomes of a trial: the difficulty of each problem is the same for all trials."""
    _, _, rate, distance = ARMS[arm]
    rng = np.random.default_rng(derive_seed(seed, arm))
    if arm.startswith(("detection", "probe")):
        return detections(f"detect_injected_{HEADLINE}", distance, rng, n) | detections(
            f"detect_pairs_{HEADLINE}", distance, rng, n
        )
    difficulty = np.random.default_rng(0).random(n)
    correct = {
        f"correct_{name}": (0.5 * (difficulty + rng.random(n)) < rate + bonus).astype(np.uint8)
        for name, bonus in {f"id_{KNOWN}": 0.25, f"ood_{OTHER}": 0.1, f"ood_{HEADLINE}": 0.0}.items()
    }
    return correct | detections(f"free_injected_{HEADLINE}", distance, rng, n)


def make_trial(arm: str, seed: int, *, status: Status = Status.FINISHED, outcomes: Arrays | None = None) -> TrialRecord:
    """Return the record of a made-up trial."""
    overrides, params, _, _ = ARMS[arm]
    skill = "detection" if arm.startswith(("detection", "probe")) else "correction"
    settings = {"seed": seed, "skill.name": skill, "training.lr": 0.003, "evaluation.n": PROBLEMS, **overrides}
    config = build_config(settings)
    trial = f"{arm}-s{seed}-b0-{config_hash(config)}"
    measures = [
        {"split": "test", "set": "stream", "op": None, "metric": "loss", "value": 0.3, "low": 0.2, "high": 0.4, "n": 32}
    ]
    result = {
        "trial": trial,
        "arm": arm,
        "sweep": "made-up",
        "status": status.value,
        "reason": "" if status is Status.FINISHED else "RuntimeError: loss is nan",
        "config": config.model_dump(mode="json"),
        "provenance": {"commit": "0123abc", "dirty": False, "versions": {"torch": "2.13.0"}, "threads": 2}
        | {"device": "cpu (x86_64)", "cpu_capability": "AVX512"},
        "precision": ("bf16" if arm == "full" else "fp32") if config.training.tokens else "",
        "tokens": config.training.tokens,
        "tokens_with_loss": config.training.tokens // 3,
        "trainable_params": params,
        "seconds": 41.5 + seed,
        "peak_memory_mib": 900.5,
        "converged": True,
        "measures": measures,
        "departures": {f"ood_{HEADLINE}": {"not computable": 40 + seed, "lookup": 12}},
    }
    finished = status is Status.FINISHED
    arrays = (outcomes_of(arm, seed) if outcomes is None else outcomes) if finished else {}
    return TrialRecord(trial, arm, status, result["reason"], result["config"], result, arrays)


def make_sweep(trials: list[TrialRecord], name: str = "made-up") -> SweepRecord:
    """Return a sweep of `trials`."""
    question = "How do correction and detection respond to the same low-rank adaptation?"
    return SweepRecord(name, question, True, GAP, ("headline",), tuple(trials))


@pytest.fixture(scope="session")
def sweep() -> SweepRecord:
    """Return a whole sweep: two seeds an arm, one seed of the references, one failed trial."""
    trials = [make_trial(arm, seed) for arm in ARMS for seed in (0, 1) if seed == 0 or arm not in ("upper", "probe")]
    place = next(i for i, record in enumerate(trials) if record.arm == "detection-full" and "-s1-" in record.trial)
    trials[place] = make_trial("detection-full", 1, status=Status.FAILED)
    return make_sweep(trials)


@pytest.fixture(scope="session")
def rows(sweep: SweepRecord) -> list[dict[str, Any]]:
    """Return the rows of the made-up sweep."""
    return rows_of(sweep)


@pytest.fixture(scope="session")
def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return the tidy table of the made-up sweep."""
    return to_frame(rows)


def write_store(runs: Path, sweep: SweepRecord) -> None:
    """Put a made-up sweep into MLflow as a sweep does; trials that are not finished have no files."""
    tracker = Tracker(runs, Sweep(name=sweep.name, question=sweep.question))
    client, parent = tracker.client, tracker.open_parent().info.run_id
    plan = [{"trial": t.trial, "arm": t.arm, "config": t.config, "alarms": list(t.alarms)} for t in sweep.trials]
    client.log_text(parent, json.dumps(plan), "plan.json")
    about = {"question": sweep.question, "first_look": sweep.first_look, "gap": sweep.gap, "figures": sweep.figures}
    client.log_text(parent, json.dumps(about), "sweep.json")
    for record in sweep.trials:
        if record.status is Status.MISSING:
            continue
        tags = {"trial": record.trial, "arm": record.arm, "sweep": sweep.name, "mlflow.parentRunId": parent}
        run = client.create_run(tracker.experiment_id, run_name=record.trial, tags=tags)
        folder = Path(str(run.info.artifact_uri))
        folder.mkdir(parents=True)
        if record.result:
            (folder / "result.json").write_text(json.dumps(record.result))
        if record.status is Status.FINISHED:
            np.savez(folder / "outcomes.npz", **record.outcomes)  # pyright: ignore[reportArgumentType]
        ended = {Status.FINISHED: "FINISHED", Status.FAILED: "FAILED"}.get(record.status, "KILLED")
        client.set_terminated(run.info.run_id, ended)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, sweep: SweepRecord) -> Path:
    """Return a folder of runs with two sweeps in its MLflow store: the made-up one, and one that broke off."""
    folder = tmp_path_factory.mktemp("runs")
    write_store(folder, sweep)
    unfinished = {1: Status.KILLED, 2: Status.FAILED, 3: Status.MISSING}
    broken = [replace(make_trial("full", seed), status=s, result={}, outcomes={}) for seed, s in unfinished.items()]
    write_store(folder, make_sweep([make_trial("full", 0), *broken], "broken"))
    return folder


@pytest.fixture(scope="session")
def made() -> SimpleNamespace:
    """Return the makers above, for tests that want a sweep of their own."""
    return SimpleNamespace(trial=make_trial, sweep=make_sweep, store=write_store, outcomes=outcomes_of)
