"""A grid of adapters, by our sweep and by Optuna with peft and transformers' Trainer, one after another.

Both start from the same base, read the same windows in the same order, and measure the same loss at the end; neither
solves problems.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from rich.console import Console
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback
from transformers.utils.logging import disable_progress_bar

from benchmarks.training_sides import InOrder, Windows, adamw, arguments_of
from benchmarks.trials import finished
from peft_study.files import write_atomic
from peft_study.igsm.families import NANO
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.stream import WindowStream
from peft_study.igsm.tokenizer import word_ids
from peft_study.models.adapters import attach
from peft_study.models.base import load_base, load_model
from peft_study.models.learner import Learner
from peft_study.study.config import TrialConfig
from peft_study.study.plan import Plan, build_plan
from peft_study.study.sweep import run_sweep
from peft_study.study.sweep_file import read_sweep
from peft_study.study.trial import train_learner
from peft_study.telling import Teller, unheard
from peft_study.training.machine import prepare_process
from peft_study.training.optim import rate


class Grid(NamedTuple):
    """What is tried."""

    ranks: tuple[int, ...]
    rates: tuple[float, ...]
    tokens: int
    """Of a trial that is not left behind."""
    base: str
    """Folder of the base."""

    @property
    def cells(self) -> list[tuple[int, float]]:
        """Return (rank, learning rate) of every trial."""
        return [(rank, lr) for rank in self.ranks for lr in self.rates]


class Outcome(NamedTuple):
    """How a grid went."""

    seconds: float
    """From nothing to the last result, worker processes and databases included."""
    losses: dict[str, list[float]]
    """`rank/rate` to the loss on each validation window, for the trials that were trained to the end."""


def plan_of(grid: Grid, folder: Path, halving: dict[str, int] | None) -> Plan:
    """Return our sweep of the grid."""
    trial = {
        "base": {"path": grid.base},
        "data": {"retry_rate": 0.5},
        "method": {"name": "lora", "embeddings": "none"},
        # A loss at each rung; without any, at the end alone, as the other side.
        "training": {"tokens": grid.tokens, "points": 9 if halving else 1},
        "evaluation": {"split": "validation"},
    }
    arm = {"trial": trial, "grid": {"method.rank": list(grid.ranks), "training.lr": list(grid.rates)}}
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({"arms": {"lora": {**arm, "halving": halving}}}))
    return build_plan(read_sweep(str(path)))


def _train_only(
    config: TrialConfig,
    folder: Path,
    *,
    on_metrics: Callable[[int, dict[str, float]], None],
    on_progress: object,  # noqa: ARG001  # nobody looks
    **names: str,
) -> dict[str, Any]:
    """Be a trial of our sweep that solves no problems."""
    prepare_process(threads=1)
    (folder / "checkpoint").mkdir(parents=True, exist_ok=True)
    learner = Learner(load_base(config.base, config.data.family), config.method, word_ids(NANO), config.seed)
    summary, found, _evaluator = train_learner(learner, config, folder, Teller(unheard, on_metrics))
    learner.save(folder / "adapter")
    (folder / "losses.json").write_text(json.dumps(window_losses(learner.model, config)))
    measures = [measure._asdict() for measure in found.measures]
    result = finished(config, **names, tokens=summary.tokens, measures=measures)
    shutil.copyfile(folder / "checkpoint" / "metrics.jsonl", folder / "metrics.jsonl")
    write_atomic(folder / "result.json", json.dumps(result))
    shutil.rmtree(folder / "checkpoint")
    return result


@torch.no_grad()
def window_losses(model: Any, config: TrialConfig) -> list[float]:
    """Return the mean loss of each validation window, by transformers' own forward pass for both sides."""
    model.eval()
    other = {"split": "validation", "seed": config.evaluation.seed}
    windows = Windows(config.evaluation.loss_windows, settings_of(config).model_copy(update=other))
    losses = []
    for window in windows:
        batch = {key: value[None].to(model.device) for key, value in window.items()}
        losses.append(float(model(**batch).loss))
    return losses


def settings_of(config: TrialConfig) -> StreamSettings:
    """Return the stream that a trial reads."""
    return StreamSettings(family=NANO, retry_rate=config.data.retry_rate, seed=config.seed + 1_000_000)


def ours(grid: Grid, *, workers: int, halving: dict[str, int] | None = None) -> Outcome:
    """Run our sweep with `workers` trials side by side, a thread each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan = plan_of(grid, folder, halving)
        started = time.monotonic()
        run_sweep(plan, folder / "runs", run=_train_only, workers=workers, console=Console(file=StringIO()))
        seconds = time.monotonic() - started
        losses = {}
        for planned in plan.trials:
            path = folder / "runs" / plan.sweep.name / planned.trial / "losses.json"
            if path.exists():
                config = planned.config
                losses[f"{config.method.rank}/{config.training.lr:g}"] = json.loads(path.read_text())
        return Outcome(seconds, losses)


def peer(grid: Grid, *, threads: int, bf16: bool, attention: str) -> Outcome:
    """Run the grid with Optuna, peft and transformers' Trainer, one trial after another with all threads."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    disable_progress_bar()
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # As ours: what a trial reads and how it is trained.
        config = plan_of(grid, folder, None).trials[0].config
        started = time.monotonic()
        steps = -(-grid.tokens // (config.training.batch_windows * WindowStream(settings_of(config)).length))
        windows = Windows(steps * config.training.batch_windows, settings_of(config))
        losses: dict[str, list[float]] = {}

        def objective(trial: Any) -> float:
            rank = trial.suggest_categorical("rank", list(grid.ranks))
            lr = trial.suggest_categorical("lr", list(grid.rates))
            model: Any = load_model(Path(grid.base))
            model.set_attn_implementation(attention)
            model = attach(model, config.method.model_copy(update={"rank": rank}), [], config.seed)
            _fit(model, windows, config, lr=lr, steps=steps, bf16=bf16, folder=folder / "trainer")
            found = window_losses(model, config)
            losses[f"{rank}/{lr:g}"] = found
            return sum(found) / len(found)

        sampler = optuna.samplers.GridSampler({"rank": list(grid.ranks), "lr": list(grid.rates)}, seed=0)
        study = optuna.create_study(storage=f"sqlite:///{folder / 'optuna.db'}", sampler=sampler)
        study.optimize(objective, n_trials=len(grid.cells))
        return Outcome(time.monotonic() - started, losses)


def _fit(model: Any, windows: Windows, config: TrialConfig, *, lr: float, steps: int, bf16: bool, folder: Path) -> None:
    """Train with transformers' Trainer; rates, clipping and optimiser as ours."""
    training = config.training
    optimizer = adamw(model, lr)
    schedule = LambdaLR(optimizer, lambda step: rate(step, steps, training.warmup_share, training.cooldown_share))
    arguments = arguments_of(folder, training.batch_windows, steps, bf16=bf16, max_grad_norm=training.clip_norm)
    trainer = InOrder(model=model, args=arguments, train_dataset=windows, optimizers=(optimizer, schedule))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
