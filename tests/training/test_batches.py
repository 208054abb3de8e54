"""A step cut into passes, or shared between processes, is the same step; positions count alike however they are cut."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from peft_study.errors import ConfigError
from peft_study.igsm.families import NANO
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.stream import Tokens, WindowStream
from peft_study.igsm.text import Kind
from peft_study.models.base import Architecture, build_base, save_base
from peft_study.models.config import MethodConfig
from peft_study.models.learner import Learner
from peft_study.skills.config import SkillConfig
from peft_study.training.batches import Batch, StreamTask, loss_of, make_batch, share_of
from peft_study.training.config import TrainingConfig
from peft_study.training.supervised import train
from tests.processes import run_together

MakeLearner = Callable[..., Learner]

LENGTH, WINDOWS, STEPS = 144, 4, 4
SETTINGS = StreamSettings(family=NANO, ops=(1, 2), retry_rate=0.4)


def task_of(skill: SkillConfig) -> StreamTask:
    stream = WindowStream(SETTINGS, length=LENGTH)
    validation = WindowStream(SETTINGS.model_copy(update={"split": "validation"}), length=LENGTH).read(6)
    return StreamTask(stream, validation, skill)


def config_of(**changes: Any) -> TrainingConfig:
    settings = {"tokens": STEPS * WINDOWS * LENGTH, "batch_windows": WINDOWS, "lr": 1e-2, "points": 2}
    return TrainingConfig.model_validate({"precision": "fp32", "attention": "sdpa"} | settings | changes)


@pytest.mark.parametrize("skill", ["correction", "detection"])
def test_passes_of_unlike_numbers_of_positions_add_up_to_the_step(
    make_learner: MakeLearner, tmp_path: Path, skill: str
) -> None:
    trained = []
    for micro in (0, 1, 3):
        learner = make_learner(MethodConfig(name="full"))
        (folder := tmp_path / str(micro)).mkdir()
        task = task_of(SkillConfig.model_validate({"name": skill}))
        summary = train(learner, task, config_of(micro_windows=micro), folder=folder, seed=0, on_point=lambda _: None)
        trained.append((summary.losses, summary.tokens_with_loss, learner))
    counts = [len(b.answers_N) for b in task_of(SkillConfig()).batches(WINDOWS, slice(None), 1, torch.device("cpu"))]
    assert len(set(counts)) > 1
    for losses, with_loss, _ in trained[1:]:
        assert losses == pytest.approx(trained[0][0], rel=1e-4)
        assert with_loss == trained[0][1]


def test_micro_windows_cuts_what_a_process_reads() -> None:
    batches = task_of(SkillConfig()).batches(5, slice(0, None, 1), 2, torch.device("cpu"))
    assert [len(batch.ids_BT) for batch in batches] == [2, 2, 1]
    mine = task_of(SkillConfig()).batches(4, slice(1, None, 2), 0, torch.device("cpu"))
    whole = task_of(SkillConfig()).batches(4, slice(None), 0, torch.device("cpu"))
    assert torch.equal(mine[0].ids_BT, whole[0].ids_BT[1::2])


def test_nothing_with_loss_is_no_loss_but_has_a_gradient_of_zero() -> None:
    logits = torch.zeros(0, 2, requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.long)
    loss = loss_of(logits, Batch(nothing, nothing, nothing, verdict=True))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert logits.grad is not None


def test_weights_of_the_problem_are_normalised_by_the_batch() -> None:
    kinds = np.array([[Kind.PROBLEM] * 3 + [Kind.DEFINE, Kind.NAME]], np.uint8)
    ids = np.arange(5, dtype=np.uint16)[None]
    batch = make_batch(Tokens(ids, kinds), SkillConfig(problem_weight=0.5), torch.device("cpu"))
    assert batch.weights_N is not None
    assert batch.weights_N.tolist() == [0.25, 0.25, 0.5, 0.5]
    assert batch.answers_N.tolist() == [1, 2, 3, 4]


def test_a_step_that_cannot_be_shared_evenly_is_refused() -> None:
    assert list(range(6))[share_of(6, 2, 3)] == [2, 5]
    with pytest.raises(ConfigError, match=r"multiple of the 3 processes, but is 8; set training.batch_windows=9"):
        share_of(8, 0, 3)


SCRIPT = """
import json, os, sys
from pathlib import Path
from accelerate.state import AcceleratorState
from tests.training.test_batches import config_of, task_of
from peft_study.igsm.families import NANO
from peft_study.igsm.tokenizer import word_ids
from peft_study.models.base import load_model
from peft_study.models.config import MethodConfig
from peft_study.models.learner import Learner
from peft_study.skills.config import SkillConfig
from peft_study.training.supervised import train
folder = Path(sys.argv[1])
learner = Learner(load_model(folder / "base"), MethodConfig(name="lora", rank=2), word_ids(NANO), 0)
work = folder / f"work-{os.environ['WORLD_SIZE']}"
work.mkdir(exist_ok=True)
config = config_of(checkpoint_seconds=0)
summary = train(learner, task_of(SkillConfig()), config, folder=work, seed=0, on_point=lambda _: None)
state = AcceleratorState()
if state.is_main_process:
    total = sum(float(p.double().abs().sum()) for p in learner.trainable().values())
    (folder / f"{state.num_processes}.json").write_text(json.dumps([state.num_processes, summary.losses, total]))
"""


def test_two_processes_give_the_loss_of_one(
    tiny: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DDP over gloo, as torchrun and `accelerate launch` start it; the first process alone writes.

    What `accelerate config` has put down for other programs changes neither the arithmetic nor the loss.
    """
    save_base(build_base(NANO, tiny, 0), NANO, tmp_path / "base", {})
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    found = []
    for processes in (1, 2):
        run_together(processes, script, tmp_path)
        found.append(json.loads((tmp_path / f"{processes}.json").read_text()))
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
        monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    (first, losses, total), (second, *shared) = found
    assert (first, second) == (1, 2)
    assert shared == [pytest.approx(losses, rel=1e-4), pytest.approx(total, rel=1e-4)]
    written = [(tmp_path / f"work-{processes}" / "metrics.jsonl").read_text() for processes in (1, 2)]
    assert [len(text.splitlines()) for text in written] == [2, 2]
