"""When a run writes its checkpoint, and what of its log it goes on with."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from peft_study.igsm.families import NANO
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.stream import WindowStream
from peft_study.models.config import MethodConfig
from peft_study.models.learner import Learner
from peft_study.training.config import TrainingConfig
from peft_study.training.run import Run


@pytest.fixture
def run_of(make_learner: Callable[..., Learner], tmp_path: Path) -> Callable[..., Run]:
    """Return a function that takes up a run."""

    def take_up(*, writes: bool = True, **changes: float) -> Run:
        config = TrainingConfig.model_validate({"tokens": 256, "batch_windows": 1, "lr": 1e-3, "points": 1} | changes)
        stream = WindowStream(StreamSettings(family=NANO, retry_rate=0.5))
        learner = make_learner(MethodConfig(name="lora", rank=2))
        return Run(learner, stream, config, folder=tmp_path, seed=0, writes=writes)

    return take_up


def test_checkpoints_take_a_tenth_of_the_time_at_most(
    run_of: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("peft_study.training.run.time.monotonic", lambda: clock[0])
    run, other = run_of(checkpoint_seconds=20), run_of(checkpoint_seconds=20, writes=False)
    assert [run.is_due(), other.is_due()] == [False, False]
    clock[0] += 21
    assert [run.is_due(), other.is_due()] == [True, False]

    def slow(*_: object) -> None:
        clock[0] += 30

    monkeypatch.setattr("peft_study.training.run.save_state", slow)
    run.save()
    clock[0] += 9 * 30 - 1
    assert not run.is_due()
    clock[0] += 2
    assert run.is_due()
    assert run_of(checkpoint_seconds=0).is_due()


def test_a_line_of_the_log_that_a_kill_has_cut_is_dropped(run_of: Callable[..., Run], tmp_path: Path) -> None:
    whole = json.dumps({"tokens": 0, "validation/loss": 1.0}) + "\n"
    (tmp_path / "metrics.jsonl").write_text(whole + '{"tokens": 0, "val')
    run_of()
    assert (tmp_path / "metrics.jsonl").read_text() == whole
