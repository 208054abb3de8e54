"""Adapters: which matrices, which ranks, and saved ones that do not fit."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from peft_study.errors import CheckpointError, ConfigError
from peft_study.igsm.families import NANO
from peft_study.igsm.tokenizer import word_ids
from peft_study.models.adapters import load_adapter, lora_config, matched_modules
from peft_study.models.base import Architecture, build_base
from peft_study.models.config import MethodConfig
from peft_study.models.learner import Learner

MakeLearner = Callable[..., Learner]


def lora(**settings: Any) -> MethodConfig:
    return MethodConfig.model_validate({"name": "lora", "rank": 2} | settings)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("qv", {"q_proj", "v_proj"}),
        ("attention", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("mlp", {"gate_proj", "up_proj", "down_proj"}),
        ("all-linear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("o_proj", {"o_proj"}),
    ],
)
def test_targets_name_matrices_of_every_layer(tiny: Architecture, targets: str, expected: set[str]) -> None:
    names = list(matched_modules(build_base(NANO, tiny, 0), targets))
    assert {name.rpartition(".")[2] for name in names} == expected
    assert len(names) == tiny.layers * len(expected)


def test_targets_that_match_nothing_are_an_error_that_names_what_is_there(tiny: Architecture) -> None:
    with pytest.raises(ConfigError, match=r"'c_attn' matches no module of this model; it has .*q_proj"):
        matched_modules(build_base(NANO, tiny, 0), "c_attn")
    with pytest.raises(ValidationError):
        lora(targets="qkv")


@pytest.mark.parametrize(("targets", "largest"), [("qv", 32), ("mlp", 32), ("all-linear", 32)])
def test_rank_up_to_the_width(make_learner: MakeLearner, targets: str, largest: int) -> None:
    make_learner(lora(targets=targets, rank=largest))
    with pytest.raises(
        ConfigError, match=f"at most the width of every adapted layer, {largest} .* but got {largest + 1}"
    ):
        make_learner(lora(targets=targets, rank=largest + 1))


def test_rank_of_the_embedding_up_to_the_width(make_learner: MakeLearner) -> None:
    make_learner(lora(embeddings="lora_2r", rank=16))
    with pytest.raises(ConfigError, match=r"at most half the model's width 32 .* but got 17"):
        make_learner(lora(embeddings="lora_2r", rank=17))
    make_learner(MethodConfig(name="probe", rank=32))
    with pytest.raises(ConfigError, match="at most the model's width 32, but got 33"):
        make_learner(MethodConfig(name="probe", rank=33))


def test_lora_needs_a_rank() -> None:
    with pytest.raises(ValidationError, match=r"method\.rank must be at least 1"):
        MethodConfig(name="lora", rank=0)


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"rank": 4}, 2.0),  # alpha is 2 r when it is not said
        ({"rank": 4, "lora_alpha": 4}, 1.0),
        ({"rank": 4, "lora_alpha": 4, "rslora": True}, 2.0),
        ({"rank": 4, "rslora": True}, 4.0),
    ],
)
def test_scale_of_the_update(make_learner: MakeLearner, settings: dict[str, Any], scale: float) -> None:
    learner = make_learner(lora(embeddings="lora_2r", **settings))
    layer: Any = learner.model.model.layers[0]
    assert layer.self_attn.q_proj.scaling["default"] == pytest.approx(scale)


def test_embedding_has_twice_the_rank_and_the_same_scale(make_learner: MakeLearner) -> None:
    learner = make_learner(lora(embeddings="lora_2r", rank=3))
    embedding: Any = learner.model.model.embed_tokens
    assert embedding.r["default"] == 6
    assert embedding.scaling["default"] == 2.0


def test_dropout_and_targets_reach_peft(tiny: Architecture) -> None:
    config = lora_config(build_base(NANO, tiny, 0), lora(dropout=0.25, targets="mlp"), [5, 6, 7])
    assert config.lora_dropout == 0.25
    assert set(config.target_modules or ()) == {"gate_proj", "up_proj", "down_proj"}
    assert config.trainable_token_indices == {"embed_tokens": [5, 6, 7], "lm_head": [5, 6, 7]}


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "adapter_config.json is missing"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "adapter_model.safetensors is missing"),
    "cut": (lambda f: _cut(f / "adapter_model.safetensors"), "cannot be read"),
    "cut config": (lambda f: _cut(f / "adapter_config.json"), "cannot be read"),
    "foreign": (lambda f: save_file({"x": torch.zeros(2)}, f / "adapter_model.safetensors"), "cannot be read"),
}


@pytest.fixture
def saved(make_learner: MakeLearner, tmp_path: Path) -> Path:
    make_learner(lora()).save(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_adapter_is_one_line(saved: Path, tiny: Architecture, damage: str) -> None:
    harm, words = DAMAGES[damage]
    harm(saved)
    with pytest.raises(CheckpointError, match=words) as raised:
        load_adapter(build_base(NANO, tiny, 0), saved)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("change", [{"layers": 3}, {"width": 48, "heads": 2}])
def test_adapter_of_another_model_is_refused(saved: Path, tiny: Architecture, change: dict[str, int]) -> None:
    other = build_base(NANO, tiny.model_copy(update=change), 0)
    with pytest.raises(CheckpointError, match=r"of another model|cannot be read"):
        load_adapter(other, saved)


def test_adapter_of_a_deeper_model_is_refused(tiny: Architecture, tmp_path: Path) -> None:
    deeper = build_base(NANO, tiny.model_copy(update={"layers": 3}), 0)
    Learner(deeper, lora(), word_ids(NANO), 0).save(tmp_path)
    with pytest.raises(CheckpointError, match="of another model"):
        load_adapter(build_base(NANO, tiny, 0), tmp_path)


def test_missing_probe_is_refused(make_learner: MakeLearner, tiny: Architecture, tmp_path: Path) -> None:
    method = MethodConfig(name="probe")
    make_learner(method).save(tmp_path)
    _cut(tmp_path / "probe.safetensors")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"probe\.safetensors cannot be read"):
            Learner(build_base(NANO, tiny, 0), method, word_ids(NANO), 0, saved=tmp_path)
        (tmp_path / "probe.safetensors").unlink(missing_ok=True)
