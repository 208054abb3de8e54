"""Making a base: from scratch, again after a kill, on from another one; its record and its card."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_study.errors import CheckpointError, ConfigError, StoreError
from peft_study.models.base import Architecture, load_model, read_pretraining
from peft_study.study import bases
from peft_study.study.bases import make_base, pretrain_command
from peft_study.study.config import build, flatten, overrides_layer
from peft_study.telling import Progress, Teller
from peft_study.training.config import TrainingConfig
from peft_study.training.pretrain import PretrainConfig, _legs

STEPS, WINDOWS = 4, 2


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bases, "GENERATED", 2)  # an untrained model writes until it is cut


def configured(tiny: Architecture, **changes: Any) -> PretrainConfig:
    training = TrainingConfig(
        tokens=STEPS * WINDOWS * 256,
        batch_windows=WINDOWS,
        lr=3e-3,
        optimizer="muon",
        precision="fp32",
        attention="sdpa",
        points=2,
        checkpoint_seconds=0,
    )
    return PretrainConfig(architecture=tiny, training=training).model_copy(update=changes)


def made(config: PretrainConfig, *, kill_at: int | None = None, told: list[str] | None = None) -> Path:
    def on_progress(progress: Progress) -> None:
        if kill_at is not None and progress.tokens == kill_at * WINDOWS * 256:
            raise KeyboardInterrupt
        if told is not None:
            told.append(progress.phase)

    return make_base(config, Path("runs"), Teller(on_progress), n=4)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(folder).state_dict()


def test_a_base_is_made_measured_and_described(tiny: Architecture) -> None:
    told: list[str] = []
    folder = made(configured(tiny), told=told)
    assert list(dict.fromkeys(told)) == [
        "train",
        *(f"solve op {op}" for op in range(1, 7)),
        "solve op 6 with retry upon regret",
        "solve op 7",
    ]
    record = read_pretraining(folder)
    assert record["training"]["tokens"] == STEPS * WINDOWS * 256
    assert set(record["measured"]["accuracy"]) >= {"4", "5", "6"}
    assert record["acceptance"]["accepted"] is False
    assert record["continued_from"] is None
    assert [point["tokens"] for point in record["curve"]] == [1024, 2048]
    card = (folder / "README.md").read_text()
    assert f"\n    {record['command']}\n" in card
    assert "**not accepted**" in card
    assert "2,048 (" in card
    assert "sdpa attention" in card
    assert not Path("runs/pretrain/nano-error-free-seed0").exists()
    with pytest.raises(StoreError, match="holds a finished base"):
        made(configured(tiny))


def test_the_command_makes_the_same_config(tiny: Architecture) -> None:
    usual = PretrainConfig(base="retry", seed=3)
    assert pretrain_command(usual) == "make pretrain FAMILY=nano BASE=retry SEED=3"
    changed = configured(tiny, base="retry", start="some/folder", op_ratio=0.4)
    words = shlex.split(pretrain_command(changed))
    assert words[:2] == ["peft-study", "pretrain"]
    assert words[-6:] == ["--family", "nano", "--base", "retry", "--seed", "0"]
    asked = {"family": "nano", "base": "retry", "seed": 0, **overrides_layer(words[2:-6])}
    assert build(PretrainConfig, flatten(PretrainConfig().model_dump()), asked) == changed


def test_a_killed_run_goes_on_to_the_same_base(tiny: Architecture, tmp_path: Path) -> None:
    straight = made(configured(tiny)).rename(tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        made(configured(tiny), kill_at=3)
    resumed = made(configured(tiny))
    expected, found = weights(straight), weights(resumed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_run_that_was_begun_with_another_config_is_refused(tiny: Architecture) -> None:
    with pytest.raises(KeyboardInterrupt):
        made(configured(tiny), kill_at=3)
    with pytest.raises(ConfigError, match=r"begun with problem_weight=.*, not 1.0; ask for the same, or remove runs"):
        made(configured(tiny, problem_weight=1.0))
    made(configured(tiny))


def test_the_two_bases_of_a_pair_differ_in_mistakes_alone(tiny: Architecture) -> None:
    pair = [read_pretraining(made(configured(tiny, base=base))) for base in ("error-free", "retry")]
    first, second = (record["config"] for record in pair)
    assert {key for key in first if first[key] != second[key]} == {"base"}
    assert pair[1]["acceptance"] is None
    assert "`retry` mistakes (rate 0.5)" in Path("checkpoints/nano-retry-seed0/README.md").read_text()


def test_a_base_can_be_continued_with_another_law_and_says_so(tiny: Architecture, tmp_path: Path) -> None:
    first = made(configured(tiny)).rename(tmp_path / "first")
    # The shape is that of the base it goes on from, whatever is asked for.
    folder = made(configured(Architecture(), start=str(first), op_ratio=0.4))
    before, after = weights(first), weights(folder)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    record = read_pretraining(folder)
    assert record["continued_from"]["training"]["tokens"] == STEPS * WINDOWS * 256
    assert "curve" not in record["continued_from"]
    card = (folder / "README.md").read_text()
    assert f"peft-study pretrain start={first} op_ratio=0.4 training.tokens=2048 " in card
    assert "| in all 2 parts | 4,096 tokens, 0.0 hours |" in card
    assert "This is the last of 2 parts" in card
    assert "last part" not in (first / "README.md").read_text()
    assert f"continued from | a part of 2,048 tokens: `{record['continued_from']['command']}`, commit" in card
    assert "| law of op | falling by 0.4 for 20 % of the tokens, then uniform |" in card
    assert (_legs(first), _legs(folder)) == (1, 2)  # each reads documents of its own
    with pytest.raises(CheckpointError, match="of base error-free, but retry is asked for"):
        made(configured(tiny, base="retry", start=str(first)))
