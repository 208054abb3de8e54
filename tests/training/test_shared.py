"""Threads that share a bank: each trains as it would alone."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3ForCausalLM

from peft_study.igsm.families import NANO
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.stream import WindowStream
from peft_study.models.config import MethodConfig
from peft_study.models.learner import Learner
from peft_study.records import Stopped
from peft_study.skills.config import SkillConfig
from peft_study.telling import Point
from peft_study.training import shared
from peft_study.training.bank import Slot
from peft_study.training.batches import StreamTask
from peft_study.training.config import TrainingConfig
from peft_study.training.run import TrainingSummary
from peft_study.training.shared import SharedBank
from peft_study.training.supervised import train

SETTINGS = StreamSettings(family=NANO, retry_rate=0.5)
STEPS = 12
CONFIG = TrainingConfig(
    tokens=STEPS * 256, batch_windows=1, points=4, lr=3e-3, precision="fp32", attention="sdpa", compile=False
)
MakeLearner = Callable[..., Learner]


def task() -> StreamTask:
    validation = WindowStream(SETTINGS.model_copy(update={"split": "validation"})).read(2)
    return StreamTask(WindowStream(SETTINGS), validation, SkillConfig())


def lora(rank: int) -> MethodConfig:
    return MethodConfig(name="lora", rank=rank)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a run."""
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.mark.parametrize("at", [1, STEPS // 2])
def test_a_run_that_is_stopped_goes_on_from_there(
    make_learner: MakeLearner, folder: Path, tmp_path: Path, at: int
) -> None:
    bank = SharedBank(2)

    def stop(point: Point) -> None:
        if point.tokens == at * 256:
            raise Stopped("for now")

    with pytest.raises(Stopped, match="for now"):
        bank.train(make_learner(lora(2)), task(), CONFIG, folder=folder, seed=0, on_point=stop)
    reached: list[int] = []
    learner = make_learner(lora(2))
    found = bank.train(
        learner, task(), CONFIG, folder=folder, seed=0, on_point=lambda point: reached.append(point.tokens // 256)
    )
    assert reached == list(range(at + 1, STEPS + 1))
    (tmp_path / "whole").mkdir()
    straight = make_learner(lora(2))
    expected = train(straight, task(), CONFIG, folder=tmp_path / "whole", seed=0, on_point=lambda _: None)
    assert found.losses == pytest.approx(expected.losses, rel=1e-5)
    assert expected.losses[0] > expected.losses[-1] + 1e-3
    for mine, other in zip(learner.trainable().values(), straight.trainable().values(), strict=True):
        assert torch.allclose(mine, other, atol=1e-5)


def test_a_run_may_come_while_another_trains(make_learner: MakeLearner, tmp_path: Path) -> None:
    """The first waits in its first step for the second, which then sits beside it; both get what they get alone."""
    bank, begun, found = SharedBank(2), threading.Event(), dict[str, TrainingSummary]()
    seated: list[int] = []

    def run(name: str, learner: Learner, on_point: Callable[[Point], None]) -> None:
        (tmp_path / name).mkdir()
        found[name] = bank.train(learner, task(), CONFIG, folder=tmp_path / name, seed=0, on_point=on_point)

    def first_point(_: Point) -> None:
        begun.set()
        while not bank.waiting and not seated:
            pass
        seated.append(len(bank.seated))

    learners = {"first": make_learner(lora(2)), "second": make_learner(lora(3))}
    first = threading.Thread(target=run, args=("first", learners["first"], first_point))
    first.start()
    begun.wait()
    run("second", learners["second"], lambda _: None)
    first.join()
    assert seated[0] == 1
    assert max(seated) == 2
    for name, rank in {"first": 2, "second": 3}.items():
        (tmp_path / f"alone-{name}").mkdir()
        alone = make_learner(lora(rank))
        expected = train(alone, task(), CONFIG, folder=tmp_path / f"alone-{name}", seed=0, on_point=lambda _: None)
        assert found[name].losses == pytest.approx(expected.losses, rel=1e-4)
    assert not bank.serving


def test_full_fine_tuning_trains_in_its_own_thread(
    make_learner: MakeLearner, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = SharedBank(2)
    monkeypatch.setattr(bank, "_serve", lambda: pytest.fail("it must not come into a bank"))
    summary = bank.train(
        make_learner(MethodConfig(name="full")), task(), CONFIG, folder=folder, seed=0, on_point=lambda _: None
    )
    assert summary.tokens == CONFIG.tokens
    assert len(summary.losses) == 4


def test_a_bank_in_bf16_keeps_the_rotary_frequencies(
    make_learner: MakeLearner, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded ones would turn far words by other angles than those of the model that is measured later."""
    seen: list[tuple[torch.dtype, torch.Tensor]] = []

    def fake(
        model: Qwen3ForCausalLM, waiting: Callable[[], Slot | None], on_end: Callable[..., None], **_: Any
    ) -> None:
        seen.append((model.lm_head.weight.dtype, model.model.rotary_emb.inv_freq))
        slot = waiting()
        assert slot is not None
        on_end(slot, slot.run.summary())

    monkeypatch.setattr(shared, "train_bank", fake)
    learner = make_learner(lora(2))
    config = CONFIG.model_copy(update={"precision": "bf16"})
    SharedBank(2).train(learner, task(), config, folder=folder, seed=0, on_point=lambda _: None)
    ((dtype, frequencies),) = seen
    assert dtype is torch.bfloat16
    assert torch.equal(frequencies, learner.model.model.rotary_emb.inv_freq)
