"""Checkpoints that are missing, damaged, foreign or dangerous."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5ForConditionalGeneration

from peft_study.errors import CheckpointError, ConfigError
from peft_study.models.config import PretrainedConfig
from peft_study.models.hub import load_pretrained, load_tokenizer
from tests.models.checkpoints import WORDS, make_tokenizer
from tests.models.learners import (
    config_of,
    logits_of,
    make,
    stranger,
)

Checkpoint = Callable[[str], Path]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def _change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _forget(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {key: value for key, value in tensors.items() if key != name}, folder / "model.safetensors", {"format": "pt"}
    )


def _make_t5(folder: Path) -> None:
    config = T5Config(vocab_size=WORDS, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(folder)


OWN_CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({marker!r}).touch()


class Zork(LlamaConfig):
    model_type = "zork"


class ZorkForCausalLM(LlamaForCausalLM):
    config_class = Zork
"""


@pytest.mark.parametrize("trusted", [False, True])
def test_code_of_a_checkpoint_runs_only_when_asked_for(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path / "cache"))
    folder, marker = shutil.copytree(checkpoint("llama"), tmp_path / "model"), tmp_path / "ran"
    (folder / "zork.py").write_text(OWN_CODE.format(marker=str(marker)))
    auto_map = {"AutoConfig": "zork.Zork", "AutoModelForCausalLM": "zork.ZorkForCausalLM"}
    _change(folder / "config.json", model_type="zork", auto_map=auto_map)
    config = config_of(folder, trust_remote_code=trusted)
    if trusted:
        assert type(load_pretrained(config)).__name__ == "ZorkForCausalLM"
    else:
        with pytest.raises(ConfigError, match=r"code of its own, .* set pretrained\.trust_remote_code=true"):
            load_pretrained(config)
    assert marker.exists() == trusted


def test_a_pickle_is_not_loaded(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("llama"), tmp_path / "model")
    (folder / "model.safetensors").unlink()
    marker = tmp_path / "ran"
    (folder / "pytorch_model.bin").write_bytes(f"cos\nsystem\n(S'touch {marker}'\ntR.".encode())
    with pytest.raises(CheckpointError, match="pickled, and loading a pickle can run any code; convert them"):
        load_pretrained(config_of(folder))
    assert not marker.exists()


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "there is no such folder; set pretrained.name"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "broken config": (lambda f: _cut(f / "config.json"), "cannot be read"),
    "unknown kind": (lambda f: _change(f / "config.json", model_type="zork"), "cannot be read"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
    "cut": (lambda f: _cut(f / "model.safetensors"), "cannot be read"),
    "not whole": (
        lambda f: _forget(f, "model.layers.1.mlp.up_proj.weight"),
        "up_proj.weight is missing and would be random",
    ),
    "no head": (lambda f: _forget(f, "lm_head.weight"), "lm_head.weight is missing and would be random"),
    "other shape": (lambda f: _change(f / "config.json", intermediate_size=96), "cannot be read"),
    "encoder and decoder": (_make_t5, "must be a causal language model, but is a t5"),
    "sees what follows": (lambda f: _change(f / "config.json", model_type="bert"), "but is a bert"),
    "quantised": (
        lambda f: _change(
            f / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}
        ),
        "is quantised already; give the plain one",
    ),
    "no tokenizer": (
        lambda f: [(f / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
        "no tokenizer can be read",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_checkpoint_is_one_line(checkpoint: Checkpoint, tmp_path: Path, damage: str) -> None:
    harm, words = DAMAGES[damage]
    folder = tmp_path / "model"
    shutil.copytree(checkpoint("llama"), folder)
    harm(folder)
    load = load_tokenizer if damage == "no tokenizer" else load_pretrained
    with pytest.raises((CheckpointError, ConfigError), match=words) as raised:
        load(config_of(folder))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


def test_the_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for load in (load_pretrained, load_tokenizer):
        with pytest.raises(
            CheckpointError, match="no-one/nothing at revision v2 is neither a local folder nor"
        ) as raised:
            load(PretrainedConfig(name="no-one/nothing", revision="v2"))
        assert "\n" not in str(raised.value)


def test_a_hub_repository_with_pickles_alone_is_not_loaded(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As the cache of the Hub has it: a repository without safetensors, which is known to be so."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository, revision = tmp_path / "models--some--model", "0" * 40
    snapshot, absent = repository / "snapshots" / revision, repository / ".no_exist" / revision
    for folder in (repository / "refs", snapshot, absent):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    for name in ("model.safetensors", "model.safetensors.index.json", "adapter_config.json"):
        (absent / name).touch()
    shutil.copy(checkpoint("llama") / "config.json", snapshot)
    torch.save(stranger(checkpoint("llama")).state_dict(), snapshot / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="some/model has no safetensors weights, and pickled ones are not loaded"):
        load_pretrained(PretrainedConfig(name="some/model"))


def test_a_sharded_checkpoint_is_whole(checkpoint: Checkpoint, tmp_path: Path) -> None:
    stranger(checkpoint("llama")).save_pretrained(tmp_path, max_shard_size="100KB")
    make_tokenizer().save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert torch.equal(logits_of(make(tmp_path)), logits_of(make(checkpoint("llama"))))


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("You are trying to access a gated repo.\nMake sure to have access to it.", "for a gated one, that you are"),
        ("v9 is not a valid git identifier (branch name, tag name or commit id)", "set pretrained.revision to"),
    ],
)
def test_what_the_hub_refuses_says_what_to_do(monkeypatch: pytest.MonkeyPatch, said: str, remedy: str) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(said)

    monkeypatch.setattr("peft_study.models.hub.AutoConfig.from_pretrained", refuse)
    with pytest.raises(CheckpointError, match=remedy) as raised:
        load_pretrained(PretrainedConfig(name="someone/model", revision="v9"))
    assert "\n" not in str(raised.value)
