"""The loop: a run that is killed and goes on equals one that is not, bit for bit; frozen stays frozen."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from peft_study.errors import CheckpointError, ConfigError
from peft_study.igsm.families import NANO
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.stream import Tokens, WindowStream
from peft_study.models.base import load_model
from peft_study.models.config import MethodConfig
from peft_study.models.learner import Learner
from peft_study.records import Stopped
from peft_study.skills.config import SkillConfig
from peft_study.telling import Point
from peft_study.training.batches import StreamTask, batch_loss, make_batch, validation_loss
from peft_study.training.checkpoint import load_state
from peft_study.training.config import TrainingConfig
from peft_study.training.run import TrainingSummary
from peft_study.training.supervised import train

MakeLearner = Callable[..., Learner]

LENGTH, WINDOWS, STEPS = 144, 2, 6
SETTINGS = StreamSettings(family=NANO, ops=(1, 2), retry_rate=0.4)
VALIDATION = WindowStream(SETTINGS.model_copy(update={"split": "validation"}), length=LENGTH).read(24)

CASES: dict[str, tuple[MethodConfig, str, dict[str, Any]]] = {
    "lora": (MethodConfig(name="lora", rank=2), "correction", {}),
    "lora-dropout": (MethodConfig(name="lora", rank=2, dropout=0.3, embeddings="lora_2r"), "detection", {}),
    "full-muon": (MethodConfig(name="full"), "correction", {"optimizer": "muon"}),
    "full-adamw": (MethodConfig(name="full"), "detection", {"weight_decay": 0.1}),
    "probe": (MethodConfig(name="probe", rank=2), "detection", {}),
}


class _KilledError(Exception):
    """Stands for signal 9."""


def configured(**changes: Any) -> TrainingConfig:
    settings = {"tokens": STEPS * WINDOWS * LENGTH, "batch_windows": WINDOWS, "lr": 1e-2, "points": 3}
    return TrainingConfig.model_validate(
        {"precision": "fp32", "attention": "sdpa", "checkpoint_seconds": 1e9} | settings | changes
    )


def run(
    learner: Learner,
    folder: Path,
    *,
    skill: str = "correction",
    stream: WindowStream | None = None,
    kill_at: int | None = None,
    kill_with: BaseException | None = None,
    **changes: Any,
) -> TrainingSummary:
    """Train in `folder`; with `kill_at` raise after that step."""
    folder.mkdir(exist_ok=True)

    def on_point(point: Point) -> None:
        if kill_at is not None and point.tokens == kill_at * WINDOWS * LENGTH:
            raise kill_with or _KilledError

    options = SkillConfig.model_validate({"name": skill})
    stream = stream or WindowStream(SETTINGS, length=LENGTH)
    task = StreamTask(stream, VALIDATION, options)
    return train(learner, task, configured(**changes), folder=folder, seed=7, on_point=on_point)


def values(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in learner.named_parameters()}


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_killed_and_resumed_equals_straight_bit_for_bit(
    make_learner: MakeLearner, tmp_path: Path, case: str, precision: str
) -> None:
    method, skill, options = CASES[case]
    changes: dict[str, Any] = options | {"precision": precision}
    straight = make_learner(method)
    expected = run(straight, tmp_path / "straight", skill=skill, **changes)

    folder = tmp_path / "killed"
    for kill_at in (4, 5):  # twice, the second time in the run that went on
        with pytest.raises(_KilledError):
            run(make_learner(method), folder, skill=skill, kill_at=kill_at, checkpoint_seconds=0, **changes)
        saved = load_state(folder)
        assert saved is not None
        assert saved[1]["step"] == kill_at - 1
    assert metrics(folder)[-1]["tokens"] == 4 * WINDOWS * LENGTH
    resumed = make_learner(method)
    got = run(resumed, folder, skill=skill, **changes)

    assert all(torch.equal(value, values(resumed)[name]) for name, value in values(straight).items())
    assert got._replace(seconds=0) == expected._replace(seconds=0)
    assert metrics(folder) == metrics(tmp_path / "straight")


def test_stopped_on_purpose_and_resumed_equals_straight(make_learner: MakeLearner, tmp_path: Path) -> None:
    """The checkpoint is of the very point at which it was stopped, however rare checkpoints are."""
    method = MethodConfig(name="lora", rank=2, dropout=0.3)
    straight = make_learner(method)
    expected = run(straight, tmp_path / "straight")
    with pytest.raises(Stopped, match="enough"):
        run(make_learner(method), tmp_path / "stopped", kill_at=4, kill_with=Stopped("enough"))
    saved = load_state(tmp_path / "stopped")
    assert saved is not None
    assert saved[1]["step"] == 4
    assert saved[1]["seconds"] > 0
    resumed = make_learner(method)
    assert run(resumed, tmp_path / "stopped")._replace(seconds=0) == expected._replace(seconds=0)
    assert all(torch.equal(value, values(resumed)[name]) for name, value in values(straight).items())
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "straight")


def test_metrics_have_a_line_a_point_and_none_twice(make_learner: MakeLearner, tmp_path: Path) -> None:
    """The kill comes after a line that is younger than the checkpoint."""
    with pytest.raises(_KilledError):
        run(make_learner(MethodConfig(name="full")), tmp_path, kill_at=4, checkpoint_seconds=0)
    assert [line["tokens"] // (WINDOWS * LENGTH) for line in metrics(tmp_path)] == [2, 4]
    summary = run(make_learner(MethodConfig(name="full")), tmp_path)
    lines = metrics(tmp_path)
    assert [line["tokens"] // (WINDOWS * LENGTH) for line in lines] == [2, 4, 6]
    assert [line["validation/loss"] for line in lines] == summary.losses
    assert set(lines[0]) == {"tokens", "train/loss", "validation/loss"}


def test_nothing_is_trained_without_tokens(make_learner: MakeLearner, tmp_path: Path) -> None:
    learner = make_learner(MethodConfig(name="full"))
    assert run(learner, tmp_path, tokens=0).tokens == 0
    assert all(torch.equal(value, values(make_learner())[name]) for name, value in values(learner).items())


def test_a_finished_run_is_not_trained_again(make_learner: MakeLearner, tmp_path: Path) -> None:
    """As where a trial was killed while it was measured."""
    first, again = make_learner(MethodConfig(name="full")), make_learner(MethodConfig(name="full"))
    summary = run(first, tmp_path)
    logged = metrics(tmp_path)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(StreamTask, "batches", lambda *_: pytest.fail("read"))
        assert run(again, tmp_path)._replace(seconds=0) == summary._replace(seconds=0)
    assert metrics(tmp_path) == logged
    assert all(torch.equal(value, values(first)[name]) for name, value in values(again).items())


def test_seed_decides_the_dropout(make_learner: MakeLearner, tmp_path: Path) -> None:
    method = MethodConfig(name="lora", rank=2, dropout=0.5)
    runs: list[dict[str, torch.Tensor]] = []
    for number, seed in enumerate((1, 1, 2)):
        torch.manual_seed(number)
        learner, stream = make_learner(method), WindowStream(SETTINGS, length=LENGTH)
        folder = tmp_path / str(number)
        folder.mkdir()
        task = StreamTask(stream, VALIDATION, SkillConfig(name="correction"))
        train(learner, task, configured(), folder=folder, seed=seed, on_point=lambda point: None)
        runs.append(values(learner))
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())
    assert not all(torch.equal(value, runs[2][name]) for name, value in runs[0].items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("case", ["lora", "lora-dropout", "probe"])
def test_frozen_values_are_bit_identical_after_training(
    make_learner: MakeLearner, tmp_path: Path, case: str, precision: str
) -> None:
    method, skill, changes = CASES[case]
    learner = make_learner(method)
    before = {name: value.clone() for name, value in values(learner).items()}
    buffers = {name: buffer.clone() for name, buffer in learner.named_buffers()}
    run(learner, tmp_path, skill=skill, precision=precision, **changes)
    trained = learner.trainable()
    for name, value in values(learner).items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name]) == (name not in trained), name
    for name, buffer in learner.named_buffers():
        assert buffer.dtype == buffers[name].dtype
        assert torch.equal(buffer, buffers[name]), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_saved_model_is_the_one_that_was_trained(make_learner: MakeLearner, tmp_path: Path, precision: str) -> None:
    """Whatever the model computed in: what is measured now and what is loaded later are the same."""
    learner = make_learner(MethodConfig(name="full"))
    run(learner, tmp_path / "work", precision=precision)
    learner.save(tmp_path / "saved")
    words = {"[BACK]": 5, "[RIGHT]": 6, "[WRONG]": 7, "[END]": 1}
    loaded = Learner(load_model(tmp_path / "saved"), MethodConfig(name="none"), words, 0)
    ids = torch.from_numpy(VALIDATION.ids.astype(np.int64))
    where = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        assert torch.equal(learner(ids, where, verdict=False), loaded.eval()(ids, where, verdict=False))


def test_masters_hold_more_than_bf16(make_learner: MakeLearner, tmp_path: Path) -> None:
    learner = make_learner(MethodConfig(name="full"))
    run(learner, tmp_path, precision="bf16", lr=1e-4)
    weight = learner.model.lm_head.weight.detach()
    assert not torch.equal(weight, weight.bfloat16().float())


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("case", ["full-muon", "lora"])
@pytest.mark.parametrize(("precision", "near"), [("fp32", 1e-4), ("bf16", 1e-2)])
def test_the_kernel_trains_as_dense_attention_does(
    make_learner: MakeLearner, tmp_path: Path, case: str, precision: str, near: float
) -> None:
    method, skill, options = CASES[case]
    losses = {}
    for attention in ("varlen", "sdpa"):
        learner = make_learner(method)
        chosen: dict[str, Any] = options | {"precision": precision, "attention": attention}
        summary = run(learner, tmp_path / attention, skill=skill, **chosen)
        assert summary.attention == attention
        losses[attention] = summary.losses
    assert losses["varlen"] == pytest.approx(losses["sdpa"], rel=near)


@pytest.mark.parametrize("skill", ["correction", "detection"])
def test_loss_falls(make_learner: MakeLearner, tmp_path: Path, skill: str) -> None:
    summary = run(
        make_learner(MethodConfig(name="full")),
        tmp_path,
        skill=skill,
        tokens=190 * WINDOWS * LENGTH,
        lr=3e-3,
        points=4,
    )
    assert summary.losses[-1] < summary.losses[0]
    assert summary.losses == [line["validation/loss"] for line in metrics(tmp_path)]


class _Recording(WindowStream):
    """A stream that remembers what was read from it."""

    def __init__(self) -> None:
        super().__init__(SETTINGS, length=LENGTH)
        self.seen: list[Tokens] = []

    def read(self, num_windows: int) -> Tokens:
        self.seen.append(super().read(num_windows))
        return self.seen[-1]


def test_both_skills_read_the_same_tokens(make_learner: MakeLearner, tmp_path: Path) -> None:
    summaries: dict[str, TrainingSummary] = {}
    streams = {skill: _Recording() for skill in ("correction", "detection")}
    for skill, stream in streams.items():
        learner = make_learner(MethodConfig(name="lora", rank=2))
        summaries[skill] = run(learner, tmp_path / skill, skill=skill, stream=stream)
    read = [np.concatenate([tokens.ids for tokens in stream.seen]) for stream in streams.values()]
    assert np.array_equal(read[0], read[1])
    assert read[0].size == summaries["correction"].tokens == summaries["detection"].tokens == STEPS * WINDOWS * LENGTH
    kinds = np.concatenate([tokens.kinds for tokens in streams["detection"].seen])
    assert summaries["detection"].tokens_with_loss == np.isin(kinds, (4, 13)).sum()  # AS and MISTAKE_AS
    assert summaries["correction"].tokens_with_loss == (~np.isin(kinds, (0, 12, 13, 16)))[:, 1:].sum()


def test_tokens_are_rounded_up_to_whole_steps(make_learner: MakeLearner, tmp_path: Path) -> None:
    summary = run(make_learner(MethodConfig(name="probe")), tmp_path, skill="detection", tokens=WINDOWS * LENGTH + 1)
    assert summary.tokens == 2 * WINDOWS * LENGTH
    assert summary.trainable_params == 2 * 32 + 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_loss_that_is_not_finite_stops_the_run(make_learner: MakeLearner, tmp_path: Path, precision: str) -> None:
    learner = make_learner(MethodConfig(name="full"))
    with torch.no_grad():
        learner.model.lm_head.weight[3, 0] = float("inf")
    with pytest.raises(FloatingPointError, match="not finite at step 0"):
        run(learner, tmp_path, precision=precision)


def test_learning_rate_must_be_known(make_learner: MakeLearner, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.lr must be a number here"):
        run(make_learner(MethodConfig(name="full")), tmp_path, lr=None)


def test_damaged_checkpoint_is_an_error_that_says_what_to_delete(make_learner: MakeLearner, tmp_path: Path) -> None:
    with pytest.raises(_KilledError):
        run(make_learner(MethodConfig(name="full")), tmp_path, kill_at=2, checkpoint_seconds=0)
    path = tmp_path / "training.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"delete {tmp_path}"):
        run(make_learner(MethodConfig(name="full")), tmp_path)


@pytest.mark.parametrize("other", [MethodConfig(name="lora", rank=3), MethodConfig(name="full")])
def test_checkpoint_of_another_run_is_refused(make_learner: MakeLearner, tmp_path: Path, other: MethodConfig) -> None:
    with pytest.raises(_KilledError):
        run(make_learner(MethodConfig(name="lora", rank=2)), tmp_path, kill_at=2, checkpoint_seconds=0)
    with pytest.raises(CheckpointError, match="is of another run") as raised:
        run(make_learner(other), tmp_path)
    assert "\n" not in str(raised.value)


def test_validation_loss_is_the_mean_over_targets(make_learner: MakeLearner) -> None:
    """Windows have unlike numbers of targets; the mean is over targets, however the windows are batched."""
    learner, skill, device = make_learner().eval(), SkillConfig(name="correction"), torch.device("cpu")
    windows = WindowStream(SETTINGS, length=LENGTH).read(11)  # more than one batch of eight
    whole = make_batch(windows, skill, device)
    with torch.no_grad():
        expected = float(batch_loss(learner, whole))
    task = StreamTask(WindowStream(SETTINGS, length=LENGTH), windows, skill)
    assert validation_loss(learner, task.validation(device)) == pytest.approx(expected, rel=1e-5)
    assert learner.training


def test_extra_metrics_are_logged(make_learner: MakeLearner, tmp_path: Path) -> None:
    points: list[Point] = []
    train(
        make_learner(MethodConfig(name="full")),
        StreamTask(WindowStream(SETTINGS, length=LENGTH), VALIDATION, SkillConfig(name="correction")),
        configured(),
        folder=tmp_path,
        seed=0,
        on_point=points.append,
        extra_metrics=lambda: {"extra": 4.5},
    )
    assert [line["extra"] for line in metrics(tmp_path)] == [4.5] * 3
    assert [point.tokens for point in points] == [(i + 1) * WINDOWS * LENGTH for i in range(STEPS)]
    assert [bool(point.metrics) for point in points] == [False, True] * 3
