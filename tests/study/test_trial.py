"""One trial of the study: what its seeds move, what it is measured beside, and what is made of it afterwards."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from peft_study.errors import ConfigError
from peft_study.evaluation.cells import Evaluator
from peft_study.igsm.families import NANO
from peft_study.models.base import Architecture, build_base, save_base
from peft_study.records import Measure, Status
from peft_study.study import trial
from peft_study.study.config import TrialConfig, build_config
from peft_study.study.evaluate import evaluate_checkpoint
from peft_study.study.export import export_trial
from peft_study.telling import Teller
from peft_study.training.batches import StreamTask
from peft_study.training.run import TrainingSummary

LOSS = Measure("validation", "stream", None, "loss", 1.0, 1.0, 1.0, 2)
LEARNER: Any = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(head_dim=16, hidden_size=32)))


def config_of(**changes: Any) -> TrialConfig:
    values = {"training.lr": 1e-3, "evaluation.loss_windows": 2, "method.name": "full"}
    return build_config(values, {key.replace("__", "."): value for key, value in changes.items()})


class _Trained(list[StreamTask]):
    """A trainer that keeps what it was given."""

    def __call__(self, learner: Any, task: Any, config: Any, **_options: Any) -> TrainingSummary:
        self.append(task)
        return TrainingSummary(0, 0, 0, 0.0, [], None)


def test_each_seed_reads_its_own_documents_and_all_the_same_validation_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Any] = []
    monkeypatch.setattr(trial, "settled", lambda config, *_, **__: config)
    monkeypatch.setattr(Evaluator, "loss", lambda *given: measured.append(given[-1]) or LOSS)
    trained, configs = _Trained(), [config_of(seed=0), config_of(seed=1), config_of(seed=0, base__seed=1)]
    for config in configs:
        trial.train_learner(LEARNER, config, tmp_path, Teller(lambda _: None), trained)
    read = [task.stream.read(4).ids for task in trained]
    assert not np.array_equal(read[0], read[1])
    # Both base pairs read the same, so that their trials are paired.
    assert np.array_equal(read[0], read[2])
    assert all(np.array_equal(tokens.ids, measured[0].ids) for tokens in measured)
    assert {task.stream.settings.split for task in trained} == {"train"}
    other = config_of(evaluation__seed=1)
    trial.train_learner(LEARNER, other, tmp_path, Teller(lambda _: None), trained)
    assert not np.array_equal(measured[-1].ids, measured[0].ids)


def test_the_loss_is_of_validation_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits: list[str] = []
    stream = trial.WindowStream
    monkeypatch.setattr(trial, "settled", lambda config, *_, **__: config)
    monkeypatch.setattr(Evaluator, "loss", lambda *_: LOSS)
    monkeypatch.setattr(trial, "WindowStream", lambda settings: splits.append(settings.split) or stream(settings))
    trial.train_learner(LEARNER, config_of(), tmp_path, Teller(lambda _: None), _Trained())
    assert splits == ["validation", "train"]


class _Asked:
    """An evaluator that keeps what it was asked."""

    def base_attempts(self, _make_base: Any, name: str, _cache: Any) -> list[str]:
        return [name]

    def correction(self, _learner: Any, baseline: Any, *, free: bool) -> Any:
        return "correction", baseline, free

    def detection(self, _learner: Any, baseline: Any) -> Any:
        return "detection", baseline


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("correction", ["error-free 0"], True)),
        ({"data__retry_rate": 0}, ("correction", ["error-free 0"], False)),
        ({"method__name": "none"}, ("correction", ["error-free 0"], False)),
        ({"base__name": "retry", "method__name": "none"}, ("correction", ["error-free 0"], True)),
        ({"base__name": "retry", "base__seed": 1, "data__retry_rate": 0}, ("correction", ["error-free 1"], True)),
        ({"skill__name": "detection", "base__seed": 1}, ("detection", ["error-free 1"])),
    ],
)
def test_a_trial_is_measured_beside_the_error_free_base_of_its_pair(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    """And its own [BACK] is looked at where it has learned that word."""
    names = {f"nano-error-free-seed{seed}": f"error-free {seed}" for seed in (0, 1)}
    monkeypatch.setattr(trial, "fingerprint", lambda folder: names.get(folder.name, "another"))
    asked: Any = _Asked()
    assert trial.evaluate_learner(LEARNER, config_of(**changes), asked, None) == expected


def test_a_retry_base_may_be_measured_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "fingerprint", lambda _: "")
    asked: Any = _Asked()
    config = config_of(base__name="retry", method__name="none")
    assert trial.evaluate_learner(LEARNER, config, asked, None, may_be_alone=True) == ("correction", None, True)


@pytest.fixture
def finished(tmp_path: Path, tiny: Architecture) -> Path:
    """Return the folder of a finished trial of detection on a tiny base."""
    save_base(build_base(NANO, tiny, 0), NANO, tmp_path / "base", {})
    config = config_of(
        base__path=str(tmp_path / "base"),
        skill__name="detection",
        method__name="lora",
        method__rank=2,
        training__tokens=512,
        training__batch_windows=1,
        training__precision="fp32",
        training__attention="sdpa",
        evaluation__n=4,
    )
    result = trial.run_trial(
        config,
        tmp_path / "trial",
        trial="t",
        arm="a",
        sweep="s",
        on_progress=lambda _: None,
        on_metrics=lambda *_: None,
    )
    assert result["status"] == Status.FINISHED, result["reason"]
    return tmp_path / "trial"


def test_what_a_trial_has_trained_is_measured_and_exported(finished: Path, tmp_path: Path) -> None:
    measures = evaluate_checkpoint(finished, "detection", NANO.headline_op, "test", 16, 0)
    again = evaluate_checkpoint(finished / "adapter", "detection", NANO.headline_op, "test", 16, 0)
    assert measures == again
    assert {"detect_auroc", "pairs detect_auroc"} <= set(measures)
    with pytest.raises(ConfigError, match=r"was not trained for correction; try --skill detection"):
        evaluate_checkpoint(finished, "correction", NANO.headline_op, "test", 16, 0)
    adapter = export_trial(finished, tmp_path / "adapter", merged=False)
    assert (adapter / "adapter_model.safetensors").is_file()
    merged = export_trial(finished, tmp_path / "merged", merged=True)
    assert (merged / "model.safetensors").is_file()
    assert (merged / "tokenizer.json").is_file()
