"""The bank: every slot gets what it would get alone, whoever trains beside it, comes or goes."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from peft_study.errors import ConfigError
from peft_study.igsm.families import NANO
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.stream import WindowStream
from peft_study.igsm.tokenizer import word_ids
from peft_study.models.base import Architecture, build_base
from peft_study.models.config import MethodConfig
from peft_study.models.learner import Learner
from peft_study.skills.config import SkillConfig
from peft_study.telling import Point
from peft_study.training.bank import Bank, Slot, train_bank
from peft_study.training.batches import StreamTask, batch_loss
from peft_study.training.config import TrainingConfig
from peft_study.training.run import Run, TrainingSummary
from peft_study.training.supervised import train

LENGTH, WINDOWS = 144, 2
SETTINGS = StreamSettings(family=NANO, ops=(1, 2), retry_rate=0.4)
VALIDATION = WindowStream(SETTINGS.model_copy(update={"split": "validation"}), length=LENGTH).read(8)


@dataclass(frozen=True)
class Trial:
    """What a run is made of."""

    method: dict[str, Any]
    skill: str = "correction"
    seed: int = 0
    steps: int = 50
    training: dict[str, Any] = field(default_factory=dict)


TRIALS = {
    "r1": Trial({"rank": 1}),
    "r8-qv": Trial({"rank": 8, "targets": "qv", "rslora": True}, "detection", seed=1, steps=53),
    "r4-table": Trial({"rank": 4, "targets": "mlp", "embeddings": "lora_2r", "lora_alpha": 3}, seed=2, steps=50),
    "r3-none": Trial({"rank": 3, "embeddings": "none"}, seed=3, steps=51, training={"lr": 5e-3, "weight_decay": 0.1}),
    "r16": Trial({"rank": 16}, "detection", steps=52, training={"lr": 1e-3, "clip_norm": 0.05, "warmup_share": 0.5}),
}


LearnerOf = Callable[[Trial], Learner]


@pytest.fixture(scope="module")
def learner_of(tiny: Architecture) -> LearnerOf:
    def make(trial: Trial) -> Learner:
        method = MethodConfig.model_validate({"name": "lora"} | trial.method)
        return Learner(build_base(NANO, tiny, 0), method, word_ids(NANO), trial.seed)

    return make


def config_of(trial: Trial) -> TrainingConfig:
    settings = {"tokens": trial.steps * WINDOWS * LENGTH, "batch_windows": WINDOWS, "lr": 3e-3, "points": 5}
    settings |= {"precision": "fp32", "attention": "sdpa", "checkpoint_seconds": 1e9}
    return TrainingConfig.model_validate(settings | trial.training)


def task_of(trial: Trial) -> StreamTask:
    stream = WindowStream(SETTINGS.model_copy(update={"seed": trial.seed}), length=LENGTH)
    return StreamTask(stream, VALIDATION, SkillConfig.model_validate({"name": trial.skill}))


def alone(
    trial: Trial, learner: Learner, folder: Path, on_point: Callable[[Point], bool] = lambda _: False
) -> TrainingSummary:
    folder.mkdir(exist_ok=True)

    def told(point: Point) -> None:
        on_point(point)

    return train(learner, task_of(trial), config_of(trial), folder=folder, seed=trial.seed, on_point=told)


def slot_of(trial: Trial, learner: Learner, folder: Path, on_point: Callable[[Point], bool] | None = None) -> Slot:
    folder.mkdir(exist_ok=True)
    task = task_of(trial)
    run = Run(learner, task, config_of(trial), folder=folder, seed=trial.seed)
    return Slot(run, task, on_point or (lambda _: False))


def together(tiny: Architecture, slots: list[Slot], *, size: int = 8) -> list[tuple[Slot, TrainingSummary | None]]:
    """Train `slots`, at most `size` at once, and return them in the order in which they end."""
    ended: list[tuple[Slot, TrainingSummary | None]] = []
    left = iter(slots)
    train_bank(
        build_base(NANO, tiny, 0), lambda: next(left, None), lambda *end: ended.append(end), size=size, attention="sdpa"
    )
    assert sorted(map(id, slots)) == sorted(id(slot) for slot, _ in ended)
    return ended


def agree(banked: Learner, solo: Learner) -> None:
    for (name, mine), (_, expected) in zip(banked.trainable().items(), solo.trainable().items(), strict=True):
        far = float((mine - expected).detach().abs().max())
        assert far < 2e-3 * float(expected.detach().abs().max()) + 1e-6, (name, far)


@pytest.mark.parametrize("size", [5, 2], ids=["all at once", "two at a time"])
def test_every_slot_gets_what_it_gets_alone(
    tiny: Architecture, learner_of: LearnerOf, tmp_path: Path, size: int
) -> None:
    """Of several ranks, targets, scales, embeddings, skills, seeds, rates, lengths; over 50 steps within 1e-4."""
    slots = {name: slot_of(trial, learner_of(trial), tmp_path / f"bank-{name}") for name, trial in TRIALS.items()}
    before = [{n: p.detach().clone() for n, p in slot.run.learner.named_parameters()} for slot in slots.values()]
    summaries = dict(together(tiny, list(slots.values()), size=size))
    for name, trial in TRIALS.items():
        learner, slot = learner_of(trial), slots[name]
        expected, found = alone(trial, learner, tmp_path / f"alone-{name}"), summaries[slot]
        assert found is not None
        assert found.losses == pytest.approx(expected.losses, rel=1e-4), name
        assert abs(expected.losses[0] - expected.losses[-1]) > 2e-3
        keep = ("tokens", "tokens_with_loss", "trainable_params", "converged", "precision", "attention")
        assert [getattr(found, key) for key in keep] == [getattr(expected, key) for key in keep]
        agree(slot.run.learner, learner)
        banked, solo = (
            [json.loads(line) for line in (tmp_path / f"{kind}-{name}" / "metrics.jsonl").read_text().splitlines()]
            for kind in ("bank", "alone")
        )
        for mine, other in zip(banked, solo, strict=True):
            assert mine == pytest.approx(other, rel=1e-3)
    for slot, start in zip(slots.values(), before, strict=True):
        for name, value in slot.run.learner.named_parameters():
            assert value.requires_grad != torch.equal(value, start[name]), name


def test_loss_and_gradients_of_the_first_step(tiny: Architecture, learner_of: LearnerOf, tmp_path: Path) -> None:
    """Exactly, where no optimiser has blown rounding up yet."""
    slots = [slot_of(trial, learner_of(trial), tmp_path / name) for name, trial in TRIALS.items()]
    for slot in slots:
        with torch.no_grad():
            for name, value in slot.run.masters.values.items():
                value.add_(0.02 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name))))
        slot.run.masters.write()
    bank = Bank(build_base(NANO, tiny, 0).requires_grad_(requires_grad=False), slots, "sdpa")
    batches = [slot.task.batches(WINDOWS, slice(None), 0, torch.device("cpu"))[0] for slot in slots]
    losses = bank.losses(batches)
    torch.stack(losses).sum().backward()
    gradients = {key: value.grad for key, value in bank.values.items() if value.grad is not None}
    for k, (slot, batch, loss) in enumerate(zip(slots, batches, losses, strict=True)):
        expected = batch_loss(slot.run.learner.train(), batch)
        expected.backward()
        assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
        for name, parameter in slot.run.learner.trainable().items():
            assert parameter.grad is not None
            mine = bank._part(gradients, name, k)
            scale = float(parameter.grad.abs().max())
            assert float((mine - parameter.grad).abs().max()) <= 1e-4 * scale + 1e-8, (k, name)


class _KilledError(Exception):
    """Stands for signal 9."""


def kill(point: Point) -> bool:
    if point.tokens == 11 * WINDOWS * LENGTH:
        raise _KilledError
    return False


@pytest.mark.parametrize("then", ["bank", "alone"])
def test_a_killed_slot_goes_on(tiny: Architecture, learner_of: LearnerOf, tmp_path: Path, then: str) -> None:
    """... beside others or alone, to what it would have been; a trial killed alone goes on in a bank."""
    trial, other = replace(TRIALS["r4-table"], steps=20), replace(TRIALS["r1"], steps=30)
    saves = replace(trial, training={"checkpoint_seconds": 0})
    straight, first, second = (learner_of(trial) for _ in range(3))
    expected = alone(trial, straight, tmp_path / "straight")
    beside = slot_of(other, learner_of(other), tmp_path / "other")
    if then == "alone":
        slots = [slot_of(saves, first, tmp_path / "killed", kill), beside]
        with pytest.raises(_KilledError):
            together(tiny, slots)
        found = alone(trial, second, tmp_path / "killed")
    else:
        with pytest.raises(_KilledError):
            alone(saves, first, tmp_path / "killed", kill)
        slot = slot_of(trial, second, tmp_path / "killed")
        assert slot.run.step >= 10
        found = dict(together(tiny, [slot, beside]))[slot]
    assert found is not None
    assert found.losses == pytest.approx(expected.losses, rel=1e-4)
    agree(second, straight)


def test_one_that_fails_or_is_stopped_does_not_disturb_the_others(
    tiny: Architecture, learner_of: LearnerOf, tmp_path: Path
) -> None:
    good = replace(TRIALS["r8-qv"], steps=12)
    wild, stopped = learner_of(TRIALS["r1"]), learner_of(TRIALS["r16"])
    with torch.no_grad():
        next(iter(wild.trainable().values())).fill_(float("nan"))
    slots = [
        slot_of(TRIALS["r1"], wild, tmp_path / "wild"),
        slot_of(good, learner_of(good), tmp_path / "good"),
        slot_of(TRIALS["r16"], stopped, tmp_path / "stopped", lambda point: point.tokens >= 3 * WINDOWS * LENGTH),
    ]
    ended = together(tiny, slots)
    assert [slots.index(slot) for slot, _ in ended] == [0, 2, 1]
    assert [summary is None for _, summary in ended] == [True, True, False]
    assert "not finite at step 0" in str(slots[0].error)
    assert slots[2].stopped
    assert slots[2].run.step == 3
    solo = learner_of(good)
    expected = alone(good, solo, tmp_path / "solo")
    assert slots[1].run.losses == pytest.approx(expected.losses, rel=1e-4)
    agree(slots[1].run.learner, solo)


def test_what_a_slot_saves_is_read_by_peft(tiny: Architecture, learner_of: LearnerOf, tmp_path: Path) -> None:
    trial = replace(TRIALS["r3-none"], steps=8)
    slot = slot_of(trial, learner_of(trial), tmp_path / "run")
    together(tiny, [slot, slot_of(TRIALS["r1"], learner_of(TRIALS["r1"]), tmp_path / "other")])
    slot.run.learner.save(tmp_path / "adapter")
    adapted = PeftModel.from_pretrained(build_base(NANO, tiny, 0), tmp_path / "adapter")
    ids = torch.from_numpy(VALIDATION.ids[:1, :40].astype("int64"))
    ids[:, 1:][ids[:, 1:] == 1] = 5  # one document
    where = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        expected = adapted(input_ids=ids).logits[0]
        assert torch.allclose(slot.run.learner(ids, where, verdict=False), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "training", "why"),
    [
        ({"name": "full"}, {}, "method full trains more than adapters"),
        ({"rank": 2, "dropout": 0.1}, {}, "dropout is drawn from one generator"),
        ({"rank": 2}, {"optimizer": "muon"}, "optimizer muon is not adamw"),
    ],
)
def test_what_must_train_alone_is_refused(
    tiny: Architecture, learner_of: LearnerOf, tmp_path: Path, method, training, why: str
) -> None:
    trial = Trial(method, training=training)
    with pytest.raises(ConfigError, match=why):
        together(tiny, [slot_of(trial, learner_of(trial), tmp_path / "x")])
