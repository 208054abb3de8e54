"""One trial: config -> data -> model -> train -> evaluate -> record."""

import errno
import json
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import yaml

from peft_study.errors import PeftStudyError
from peft_study.evaluation.cells import Evaluator, Findings
from peft_study.files import write_atomic
from peft_study.igsm.families import family_named
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.stream import WindowStream
from peft_study.igsm.tokenizer import word_ids
from peft_study.models.base import load_base
from peft_study.models.config import BaseConfig
from peft_study.models.learner import Learner
from peft_study.models.places import base_folder, fingerprint
from peft_study.records import Status
from peft_study.rng import TORCH_GLOBALS
from peft_study.study.config import CONFIG_FILE, TRAINED_METHODS, TrialConfig
from peft_study.study.provenance import provenance
from peft_study.study.texts import BASELINE, run_texts
from peft_study.telling import Point, Progress, Teller
from peft_study.training.batches import StreamTask
from peft_study.training.config import TrainingConfig
from peft_study.training.machine import settled
from peft_study.training.run import TrainingSummary
from peft_study.training.supervised import train


class Trainer(Protocol):
    """Trains a learner to the end of its config: the loop itself, or a bank in which others train beside it."""

    def __call__(
        self,
        learner: Learner,
        task: StreamTask,
        config: TrainingConfig,
        *,
        folder: Path,
        seed: int,
        on_point: Callable[[Point], None],
    ) -> TrainingSummary:
        """Train from the checkpoint in `folder` if there is one."""
        ...


def reset_peak_memory() -> None:
    """Start measuring the peak memory of this process anew, where the system can (Linux, CUDA)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def peak_memory_mib() -> float:
    """Return the peak memory since the reset: of the GPU if there is one, else resident memory of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def train_learner(
    learner: Learner, config: TrialConfig, folder: Path, teller: Teller, trainer: Trainer = train
) -> tuple[TrainingSummary, Findings, Evaluator]:
    """Train `learner` as configured, from the checkpoint in `folder` if there is one, and measure the loss.

    The kernels are settled once for all trials beside `folder`.
    """
    family = family_named(config.data.family)
    settings = StreamSettings(
        family=family,
        order=config.data.order,
        kind=config.data.kind,
        retry_rate=config.data.retry_rate,
        seed=config.seed + 1_000_000,
    )
    validation_settings = settings.model_copy(update={"split": "validation", "seed": config.evaluation.seed})
    validation = WindowStream(validation_settings).read(config.evaluation.loss_windows)
    shape = learner.model.config
    if config.method.name in TRAINED_METHODS and config.training.tokens:
        summary = trainer(
            learner,
            StreamTask(WindowStream(settings), validation, config.skill),
            settled(config.training, folder.parent, head_width=shape.head_dim, width=shape.hidden_size),
            folder=folder / "checkpoint",
            seed=config.seed,
            on_point=teller.point,
        )
    else:
        summary = TrainingSummary(0, 0, 0, 0.0, [], None)
    rate = config.data.retry_rate
    evaluator = Evaluator(config.evaluation, config.data, mistakes_rate=rate, on_phase=teller.phase)
    return summary, Findings(measures=[evaluator.loss(learner, config.skill, validation)]), evaluator


def _knows_back(config: TrialConfig) -> bool:
    """Whether the model has been trained to emit [BACK]."""
    return config.base.name == "retry" or (
        config.method.name in TRAINED_METHODS and config.skill.name == "correction" and config.data.retry_rate > 0
    )


def evaluate_learner(
    learner: Learner, config: TrialConfig, evaluator: Evaluator, cache: Path | None, *, may_be_alone: bool = False
) -> Findings:
    """Measure a trained learner on its skill's sets; the error-free base's own solutions are kept in `cache`.

    With `may_be_alone` what is measured beside the error-free base of a retry base is left out where that is not there.
    """
    error_free = BaseConfig(name="error-free", seed=config.base.seed) if config.base.name == "retry" else config.base
    folder = base_folder(error_free, config.data.family)
    if may_be_alone and not fingerprint(folder) and config.skill.name == "correction":
        return evaluator.correction(learner, None, free=_knows_back(config))
    baseline = evaluator.base_attempts(lambda: load_base(error_free, config.data.family), fingerprint(folder), cache)
    if config.skill.name == "detection":
        return evaluator.detection(learner, baseline)
    return evaluator.correction(learner, baseline, free=_knows_back(config))


def _run(
    config: TrialConfig, folder: Path, teller: Teller, on_note: Callable[[str], None], trainer: Trainer
) -> dict[str, Any]:
    """Train and evaluate; return the part of the result that a failed trial has not."""
    torch.use_deterministic_algorithms(not torch.cuda.is_available())
    reset_peak_memory()
    if config.pretrained is not None:
        result = run_texts(config, folder, teller, on_note)
        return result | {"peak_memory_mib": round(peak_memory_mib(), 1)}
    family = family_named(config.data.family)
    with TORCH_GLOBALS:
        learner = Learner(load_base(config.base, config.data.family), config.method, word_ids(family), config.seed)
    summary, found, evaluator = train_learner(learner, config, folder, teller, trainer)
    if config.method.name in TRAINED_METHODS:
        learner.save(folder / "adapter")
    rest = evaluate_learner(learner, config, evaluator, folder.parent / "cache")
    np.savez_compressed(folder / "outcomes.npz", **rest.arrays)  # pyright: ignore[reportArgumentType]
    (folder / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in rest.samples))
    return {
        "tokens": summary.tokens,
        "tokens_with_loss": summary.tokens_with_loss,
        "trainable_params": summary.trainable_params,
        "seconds": round(summary.seconds, 2),
        "peak_memory_mib": round(peak_memory_mib(), 1),
        "converged": summary.converged,
        "precision": summary.precision,
        "attention": summary.attention,
        "departures": rest.departures,
        "measures": [measure._asdict() for measure in found.measures + rest.measures],
    }


def _leave_nothing(folder: Path) -> None:
    """Take away what a trial has written that was refused before it began: a config that is mended may come here."""
    checkpoint = folder / "checkpoint"
    if not any(checkpoint.iterdir()) and not (folder / BASELINE).exists():
        checkpoint.rmdir()
        for name in (CONFIG_FILE, "provenance.json"):
            (folder / name).unlink()


def run_trial(
    config: TrialConfig,
    folder: Path,
    *,
    trial: str,
    arm: str,
    sweep: str,
    on_progress: Callable[[Progress], None],
    on_metrics: Callable[[int, dict[str, float]], None],
    on_note: Callable[[str], None] = lambda _: None,
    trainer: Trainer = train,
) -> dict[str, Any]:
    """Run one trial in `folder`, from its checkpoint if there is one, and return its result.

    `result.json` is written last and atomically: without it the trial is not finished. An error of the trial gives
    a result with status failed and the reason, and leaves its checkpoint for another attempt; an error of the user
    (PeftStudyError) is raised, nothing is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / CONFIG_FILE, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    base = config.base_folder
    origin = provenance() | {"base": str(base), "base_weights": fingerprint(base)}
    write_atomic(folder / "provenance.json", json.dumps(origin, indent=1) + "\n")
    (folder / "checkpoint").mkdir(exist_ok=True)
    result: dict[str, Any] = {"trial": trial, "arm": arm, "sweep": sweep, "config": config.model_dump(mode="json")}
    try:
        result |= {"status": Status.FINISHED.value, "reason": ""} | _run(
            config, folder, Teller(on_progress, on_metrics), on_note, trainer
        )
    except PeftStudyError:
        _leave_nothing(folder)
        raise
    except Exception as error:  # a trial that fails must not take the sweep with it; its reason is kept
        if "No space left on device" in str(error):
            # safetensors has an error of its own for it.
            raise OSError(errno.ENOSPC, "No space left on device", str(folder)) from error
        (folder / "traceback.txt").write_text(traceback.format_exc())
        result |= {"status": Status.FAILED.value, "reason": f"{type(error).__name__}: {error}", "measures": []}
    result["provenance"] = {key: value for key, value in origin.items() if key != "diff"}
    metrics = folder / "checkpoint" / "metrics.jsonl"
    if metrics.is_file():
        shutil.copyfile(metrics, folder / "metrics.jsonl")
    write_atomic(folder / "result.json", json.dumps(result, indent=1) + "\n")
    if result["status"] == Status.FINISHED:
        shutil.rmtree(folder / "checkpoint")
    return result
