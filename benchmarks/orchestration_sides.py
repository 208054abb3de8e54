"""What a sweep costs beside its trials: ours, Optuna as it comes, and Optuna with MLflow as people write it.

Trials train nothing; each reports its loss eight times and ends. A unit is a study of `trials` trials.
"""

import itertools
import json
import logging
import math
import tempfile
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from benchmarks.race import Gate
from benchmarks.trials import finished
from peft_study.files import write_atomic
from peft_study.igsm.families import NANO
from peft_study.study.config import TrialConfig
from peft_study.study.plan import build_plan
from peft_study.study.sweep import run_sweep
from peft_study.study.sweep_file import read_sweep

REPORTS = 8
TOKENS = 8_000


def loss(rate: float, report: int) -> float:
    """Return a loss that falls, least for a rate of 1e-3."""
    return 1 / (report + 1) + abs(math.log10(rate) + 3)


def _trial(
    config: TrialConfig,
    folder: Path,
    *,
    on_metrics: Callable[[int, dict[str, float]], None],
    on_progress: object,  # noqa: ARG001  # nothing trains
    **names: str,
) -> dict[str, Any]:
    """Be a trial of our sweep."""
    folder.mkdir(parents=True)
    rate = config.training.lr
    assert rate is not None
    for report in range(REPORTS):
        on_metrics((report + 1) * TOKENS // REPORTS, {"validation/loss": loss(rate, report)})
    measure: dict[str, Any] = {
        "split": "validation",
        "set": "ood",
        "op": NANO.headline_op,
        "metric": "accuracy",
        "n": 8,
    }
    measure |= {"value": 1 - loss(rate, REPORTS - 1) / 10, "low": 0.0, "high": 1.0}
    result = finished(config, **names, tokens=TOKENS, measures=[measure])
    write_atomic(folder / "result.json", json.dumps(result))
    return result


def ours(gate: Gate, *, trials: int) -> None:
    """Run sweeps one after another in one folder."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        for number in itertools.count():
            path = here / f"sweep{number}.yaml"
            trial = {
                "method": {"name": "full"},
                "training": {"tokens": TOKENS},
                "evaluation": {"split": "validation"},
            }
            arm = {"trial": trial, "grid": {"training.lr": [10 ** (-4 + 2 * i / trials) for i in range(trials)]}}
            path.write_text(yaml.safe_dump({"arms": {"full": arm}}))
            plan = build_plan(read_sweep(str(path)))
            outcome = run_sweep(plan, here / "runs", run=_trial, workers=0, console=Console(file=StringIO()))
            gate(float(sum(status == "finished" for status in outcome.statuses.values())))


def _studies(here: Path) -> Iterator[Any]:
    """Yield new studies of Optuna with its defaults, all in one SQLite file."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for number in itertools.count():
        yield optuna.create_study(storage=f"sqlite:///{here / 'optuna.db'}", study_name=f"study{number}")


def _suggest(trial: Any) -> dict[str, Any]:
    """Draw seven parameters, as many as one would tune."""
    return {
        "lr": trial.suggest_float("lr", 1e-4, 1e-2, log=True),
        "rank": trial.suggest_categorical("rank", [1, 2, 4, 8, 16]),
        "alpha": trial.suggest_float("alpha", 1, 64, log=True),
        "dropout": trial.suggest_float("dropout", 0, 0.3),
        "targets": trial.suggest_categorical("targets", ["qv", "attention", "mlp", "all-linear"]),
        "weight_decay": trial.suggest_float("weight_decay", 0, 0.1),
        "warmup": trial.suggest_float("warmup", 0, 0.2),
    }


def optuna_alone(gate: Gate, *, trials: int) -> None:
    """Optimise studies of Optuna, without pruning so that all trials report alike."""

    def objective(trial: Any) -> float:
        rate = _suggest(trial)["lr"]
        for report in range(REPORTS):
            trial.report(loss(rate, report), report)
            trial.should_prune()
        return loss(rate, REPORTS - 1)

    with tempfile.TemporaryDirectory() as folder:
        for study in _studies(Path(folder)):
            study.optimize(objective, n_trials=trials)
            gate(float(len(study.get_trials(deepcopy=False))))


def optuna_and_mlflow(gate: Gate, *, trials: int) -> None:
    """Log each trial as a nested run besides, with MLflow's fluent calls."""
    import mlflow

    def objective(trial: Any) -> float:
        drawn = _suggest(trial)
        with mlflow.start_run(nested=True, run_name=f"trial{trial.number}"):
            mlflow.log_params(drawn)
            for report in range(REPORTS):
                value = loss(drawn["lr"], report)
                mlflow.log_metric("validation/loss", value, step=report)
                trial.report(value, report)
                trial.should_prune()
            mlflow.log_dict(drawn, "result.json")
        return loss(drawn["lr"], REPORTS - 1)

    with tempfile.TemporaryDirectory() as folder:
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        mlflow.set_tracking_uri(f"sqlite:///{Path(folder) / 'mlflow.db'}")
        mlflow.set_experiment(experiment_id=mlflow.create_experiment("sweeps", f"file://{folder}/artifacts"))
        for study in _studies(Path(folder)):
            with mlflow.start_run(run_name=study.study_name):
                study.optimize(objective, n_trials=trials)
            gate(float(len(study.get_trials(deepcopy=False))))
