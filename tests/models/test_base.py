"""Bases: the same seed gives the same weights, and a checkpoint is read whole or not at all."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_study.errors import CheckpointError, PeftStudyError
from peft_study.igsm.families import NANO
from peft_study.igsm.tokenizer import word_ids
from peft_study.models.base import (
    Architecture,
    build_base,
    load_base,
    load_model,
    read_pretraining,
    save_base,
)
from peft_study.models.config import BaseConfig


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny: Architecture) -> Path:
    folder = tmp_path_factory.mktemp("base") / "nano-error-free-seed0"
    save_base(build_base(NANO, tiny, 0), NANO, folder, {"family": "nano", "tokens": 7})
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "copied"))


def test_seed_decides_the_weights(tiny: Architecture) -> None:
    torch.manual_seed(0)
    first = build_base(NANO, tiny, 1).state_dict()
    torch.manual_seed(1)
    same, other = build_base(NANO, tiny, 1).state_dict(), build_base(NANO, tiny, 2).state_dict()
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_building_does_not_touch_the_global_generator(tiny: Architecture) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    build_base(NANO, tiny, 1)
    assert torch.equal(torch.rand(3), expected)


def test_heads_of_local_layers_begin_by_looking_back() -> None:
    model = build_base(NANO, Architecture(), 0).eval()
    model.config._attn_implementation = "eager"
    ids = torch.randint(8, len(word_ids(NANO)), (8, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        attended = model(input_ids=ids, output_attentions=True).attentions
    for layer in range(2):
        for head in range(4):
            # How far back the last 20 tokens of each row look on average.
            far = torch.stack([attended[layer][:, head, at, :].flip(-1).roll(at - 39, -1) for at in range(20, 40)])
            assert int(far.mean((0, 1)).argmax()) == head + 1
    for layer in (2, 3):
        assert float(attended[layer][:, :, -1].max()) < 0.5


def test_embeddings_are_not_tied(tiny: Architecture) -> None:
    model = build_base(NANO, tiny, 0)
    assert model.model.embed_tokens.weight.data_ptr() != model.lm_head.weight.data_ptr()
    assert model.config.vocab_size == len(word_ids(NANO))


def test_round_trip(saved: Path, tiny: Architecture) -> None:
    expected = build_base(NANO, tiny, 0).state_dict()
    ours = load_model(saved)
    strangers = AutoModelForCausalLM.from_pretrained(saved)
    for model in (ours, strangers):
        assert all(torch.equal(expected[name], value) for name, value in model.state_dict().items())
        assert all(value.dtype == torch.float32 for value in model.state_dict().values())
    assert read_pretraining(saved) == {"family": "nano", "tokens": 7}
    assert AutoTokenizer.from_pretrained(saved)(" Define")["input_ids"] == [word_ids(NANO)["Define"]]


def test_default_shape_is_about_a_million_parameters() -> None:
    model = build_base(NANO, Architecture(), 0)
    assert 0.8e6 < sum(parameter.numel() for parameter in model.parameters()) < 1.2e6


def _rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _without(path: Path, name: str) -> None:
    save_file({key: value for key, value in load_file(path).items() if key != name}, path, {"format": "pt"})


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda folder: shutil.rmtree(folder), "model.safetensors is missing"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
    "cut": (lambda folder: _cut(folder / "model.safetensors", 0.5), "truncated or no safetensors"),
    "cut by one byte": (lambda folder: _cut(folder / "model.safetensors", 0.99999), "truncated or no safetensors"),
    "empty": (lambda folder: _cut(folder / "model.safetensors", 0), "truncated or no safetensors"),
    "text": (lambda folder: (folder / "model.safetensors").write_text("hello" * 99), "truncated or no safetensors"),
    # Without its config transformers would build a model of 32 GB.
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    "cut config": (lambda folder: _cut(folder / "config.json", 0.5), "config.json is damaged"),
    "list config": (lambda folder: (folder / "config.json").write_text("[]"), "config.json is damaged"),
    "other kind": (lambda folder: _rewrite(folder / "config.json", model_type="llama"), "but is a llama"),
    "fewer key heads": (
        lambda folder: _rewrite(folder / "config.json", num_key_value_heads=1),
        "as many key heads as query heads, but .* says 1 and ",
    ),
    "other width": (lambda folder: _rewrite(folder / "config.json", hidden_size=48), "cannot be read"),
    "other depth": (lambda folder: _rewrite(folder / "config.json", num_hidden_layers=3), "cannot be read"),
    "no head": (lambda folder: _without(folder / "model.safetensors", "lm_head.weight"), "lm_head.weight does not fit"),
    "foreign": (
        lambda folder: save_file({"x": torch.zeros(3)}, folder / "model.safetensors", {"format": "pt"}),
        "does not hold this model",
    ),
}


def _cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_is_one_line_with_the_remedy(copied: Path, damage: str) -> None:
    harm, words = DAMAGES[damage]
    harm(copied)
    with pytest.raises(CheckpointError, match=words) as raised:
        load_model(copied, remedy="do this")
    assert isinstance(raised.value, PeftStudyError)
    assert "\n" not in str(raised.value)
    assert str(copied) in str(raised.value)
    assert str(raised.value).endswith("do this")


def test_a_missing_or_damaged_base_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, copied: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"missing\); make it with `make pretrain FAMILY=nano BASE=retry SEED=3`"):
        load_base(BaseConfig(name="retry", seed=3), "nano")
    with pytest.raises(CheckpointError, match=r"missing\); set base.path to the folder of a whole base"):
        load_base(BaseConfig(name="retry", path="none"), "nano")
    shipped = Path("checkpoints/nano-retry-seed3")
    shutil.copytree(copied, shipped)
    _cut(shipped / "model.safetensors", 0.5)
    with pytest.raises(
        CheckpointError, match=f"; restore {shipped} .*, or move it away and make it with `make pretrain"
    ):
        load_base(BaseConfig(name="retry", seed=3), "nano")


def test_base_of_another_vocabulary_is_refused(tiny: Architecture, tmp_path: Path) -> None:
    larger = NANO.model_copy(update={"name": "larger", "modulus": 7})
    save_base(build_base(larger, tiny, 0), larger, tmp_path, {})
    with pytest.raises(CheckpointError, match=f"family nano has {len(word_ids(NANO))} words"):
        load_base(BaseConfig(path=str(tmp_path)), "nano")


def test_unreadable_pretraining_record(copied: Path) -> None:
    _cut(copied / "pretraining.json", 0.5)
    with pytest.raises(CheckpointError, match="damaged"):
        read_pretraining(copied)
    (copied / "pretraining.json").unlink()
    with pytest.raises(CheckpointError, match="family is unknown"):
        read_pretraining(copied)
