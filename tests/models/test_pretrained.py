"""Any causal language model as a learner: what trains, what is saved, and what strangers read of it."""

import json
import logging
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from accelerate import Accelerator
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_study.errors import CheckpointError, ConfigError
from peft_study.models.pretrained import PretrainedLearner
from peft_study.models.quantize import quantized_layers
from peft_study.training.batches import Batch, batch_loss, next_words
from peft_study.training.config import TrainingConfig
from peft_study.training.supervised import train
from tests.models.checkpoints import WORDS
from tests.models.learners import (
    CPU,
    EVERYWHERE,
    IDS,
    KINDS,
    QUANTIZATIONS,
    TARGETS,
    TIED_WARNING,
    config_of,
    logits_of,
    make,
    method_of,
    state_of,
    stranger,
    take_steps,
    verdict_batch,
)

Checkpoint = Callable[[str], Path]


class Trained(NamedTuple):
    learner: PretrainedLearner
    before: dict[str, Tensor]
    losses: list[float]
    saved: Path


@pytest.fixture(scope="module")
def trained(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Trained]:
    """Return a function that gives an adapter over a base of some kind, trained for a few steps and saved."""
    folder = tmp_path_factory.mktemp("adapters")

    @cache
    def get(kind: str, quantization: str) -> Trained:
        learner = make(checkpoint(kind), quantization=quantization)
        before = state_of(learner.model)
        losses = take_steps(learner)
        learner.save(folder / f"{kind}-{quantization}")
        return Trained(learner, before, losses, folder / f"{kind}-{quantization}")

    return get


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
class TestAdapters:
    def test_loss_falls(self, trained: Callable[[str, str], Trained], kind: str, quantization: str) -> None:
        losses = trained(kind, quantization).losses
        assert losses[-1] < losses[0] - 0.05

    def test_adapters_alone_move(self, trained: Callable[[str, str], Trained], kind: str, quantization: str) -> None:
        learner, before, _, _ = trained(kind, quantization)
        moved = {name.removeprefix("model.") for name in learner.trainable()}
        assert all("lora_" in name for name in moved)
        assert moved == {name for name in before if "lora_" in name}
        after = state_of(learner.model)
        assert after.keys() == before.keys()
        for name, value in after.items():
            assert torch.equal(value, before[name]) == (name not in moved), name

    def test_strangers_get_the_same_logits(
        self, trained: Callable[[str, str], Trained], checkpoint: Checkpoint, kind: str, quantization: str
    ) -> None:
        learner, _, _, saved = trained(kind, quantization)
        base, expected = stranger(checkpoint(kind), quantization), logits_of(learner)
        with torch.no_grad():
            untouched = base.train()(IDS).logits
            # Without our guard 4 bits are rounded to bf16 in evaluation on some CPUs, and 8 bits round activations.
            training = PeftModel.from_pretrained(base, saved).train()(IDS).logits
            evaluating = base.eval()(IDS).logits
            mine = learner.train()(IDS, EVERYWHERE, verdict=False).view_as(training)
        assert torch.allclose(training, mine, atol=1e-5)
        assert torch.allclose(evaluating, expected, atol=0.1 if quantization == "nf4" else 1e-5)
        assert not torch.allclose(training, untouched, atol=1e-2)

    def test_we_get_the_same_logits(
        self, trained: Callable[[str, str], Trained], checkpoint: Checkpoint, kind: str, quantization: str
    ) -> None:
        learner, _, _, saved = trained(kind, quantization)
        again = make(checkpoint(kind), saved=saved, quantization=quantization)
        assert torch.equal(logits_of(again), logits_of(learner))

    def test_merged_is_plain_and_the_same(
        self, trained: Callable[[str, str], Trained], kind: str, quantization: str, tmp_path: Path
    ) -> None:
        learner = trained(kind, quantization).learner
        with torch.no_grad():
            # On a CPU int8 rounds activations in evaluation alone; what it trains with is what is merged.
            expected = learner.train()(IDS, EVERYWHERE, verdict=False).view(*IDS.shape, -1)
        state, evaluated = state_of(learner.model), logits_of(learner)
        merged: Any = learner.merged()
        assert not quantized_layers(merged)
        assert not any(isinstance(module, LoraLayer) for module in merged.modules())
        merged.save_pretrained(tmp_path)
        assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
        with torch.no_grad():
            assert torch.allclose(merged(IDS).logits, expected, atol=1e-4)
            assert torch.allclose(stranger(tmp_path)(IDS).logits, merged(IDS).logits, atol=1e-6)
        with torch.no_grad():
            for parameter in merged.parameters():
                parameter.add_(1.0)
        assert torch.equal(logits_of(learner), evaluated)
        assert all(torch.equal(value, state[name]) for name, value in state_of(learner.model).items())


@pytest.mark.parametrize("kind", KINDS)
def test_full_fine_tuning(checkpoint: Checkpoint, kind: str, tmp_path: Path) -> None:
    learner = make(checkpoint(kind), method_of("full"))
    before = {name: p.detach().clone() for name, p in learner.named_parameters()}
    losses = take_steps(learner, lr=1e-3)
    assert losses[-1] < losses[0] - 0.1
    assert set(learner.trainable()) == set(before)
    for name, parameter in learner.named_parameters():
        # A key's bias moves all logits of a query alike, so it has no gradient but rounding.
        assert not torch.equal(parameter, before[name]) or name.endswith("k_proj.bias"), name
    learner.save(tmp_path)
    with torch.no_grad():
        assert torch.allclose(stranger(tmp_path)(IDS).logits, logits_of(learner), atol=1e-6)
    again = make(checkpoint(kind), method_of("full"), saved=tmp_path)
    assert torch.equal(logits_of(again), logits_of(learner))
    assert len(again.trainable()) == len(before)
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == learner.tokenizer.get_vocab()
    assert learner.merged() is learner.model


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantised_weights_cannot_be_trained(tmp_path: Path, quantization: str) -> None:
    with pytest.raises(ConfigError, match=f"got pretrained.quantization={quantization}; set .*method.name=lora"):
        make(tmp_path, method_of("full"), quantization=quantization)


@pytest.mark.filterwarnings(TIED_WARNING)
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "gpt_neox"])
def test_probe(checkpoint: Checkpoint, kind: str, rank: int, tmp_path: Path) -> None:
    method = method_of("probe", rank=rank)
    learner = make(checkpoint(kind), method)
    assert torch.equal(logits_of(learner), logits_of(make(checkpoint(kind), method_of("none"))))
    losses = take_steps(learner, verdict_batch(), steps=6)
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)
    assert losses[-1] < losses[0] - 0.01
    assert learner.num_trainable() == 2 * 64 + 2 + rank * (WORDS + 64)
    learner.save(tmp_path)
    batch = verdict_batch()
    with torch.no_grad():
        expected = learner.eval()(IDS, batch.where_BT, verdict=True)
        again = make(checkpoint(kind), method, saved=tmp_path).eval()(IDS, batch.where_BT, verdict=True)
        base = stranger(checkpoint(kind))
        theirs: Any = PeftModel.from_pretrained(base, tmp_path) if rank else base
        hidden = theirs(IDS, output_hidden_states=True).hidden_states[-1][batch.where_BT]
        head = load_file(tmp_path / "probe.safetensors")
    assert torch.equal(again, expected)
    assert torch.allclose(functional.linear(hidden, head["weight"], head["bias"]), expected, atol=1e-5)


def test_nothing_is_trained_by_none(checkpoint: Checkpoint, tmp_path: Path) -> None:
    learner = make(checkpoint("llama"), method_of("none"))
    assert (learner.num_trainable(), learner.matched, learner.peft) == (0, [], None)
    with torch.no_grad():
        assert torch.allclose(logits_of(learner), stranger(checkpoint("llama"))(IDS).logits, atol=1e-6)
    learner.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_seeds_and_the_global_generator(checkpoint: Checkpoint) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first, same = make(checkpoint("llama")).trainable(), make(checkpoint("llama"), new_tokens=("[BACK]",)).trainable()
    other = PretrainedLearner(config_of(checkpoint("llama")), method_of(), 1).trainable()
    make(checkpoint("llama"), method_of("probe")).isolates()
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_base_is_named(trained: Callable[[str, str], Trained], checkpoint: Checkpoint) -> None:
    written = json.loads((trained("gpt2", "none").saved / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(checkpoint("gpt2"))
    assert written["revision"] is None
    assert sorted(written["target_modules"]) == ["c_attn", "c_fc", "c_proj"]


def test_the_revision_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for method in (method_of(), method_of("probe", rank=2)):
        make(checkpoint("llama"), method, revision="v1").save(tmp_path)
        assert json.loads((tmp_path / "adapter_config.json").read_text())["revision"] == "v1"


def test_the_adapter_is_small(trained: Callable[[str, str], Trained]) -> None:
    saved, learner = trained("llama", "none").saved, trained("llama", "none").learner
    tensors = load_file(saved / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == learner.num_trainable()


def test_going_on_does_not_wrap_twice(
    trained: Callable[[str, str], Trained], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    first = trained("llama", "nf4")
    again = make(checkpoint("llama"), quantization="nf4", saved=first.saved)
    layers = [module for module in again.modules() if isinstance(module, LoraLayer)]
    assert len(layers) == len(first.learner.matched) == len(again.matched)
    assert not any(isinstance(layer.get_base_layer(), LoraLayer) for layer in layers)
    assert again.trainable().keys() == first.learner.trainable().keys()
    losses = take_steps(again)
    assert losses[0] < first.losses[-1]
    again.save(tmp_path)
    keys = [load_file(folder / "adapter_model.safetensors").keys() for folder in (tmp_path, first.saved)]
    assert keys[0] == keys[1]


def test_an_adapter_is_no_base(trained: Callable[[str, str], Trained]) -> None:
    """Else transformers would load its base, put it on, and have it wrapped again."""
    with pytest.raises(CheckpointError, match=r"holds an adapter, not a model; set pretrained\.name to its base"):
        make(trained("llama", "none").saved)


@pytest.mark.parametrize("kind", ["gpt2", "phi3"])
def test_an_adapter_of_another_model_is_refused(
    trained: Callable[[str, str], Trained], checkpoint: Checkpoint, kind: str
) -> None:
    with pytest.raises(CheckpointError, match=r"of another model|cannot be read"):
        make(checkpoint(kind), method_of(rank=2), saved=trained("llama", "none").saved)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
def test_gradient_checkpointing_gives_the_same_gradients(checkpoint: Checkpoint, kind: str, quantization: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        learner = make(checkpoint(kind), quantization=quantization, gradient_checkpointing=checkpointing).train()
        assert learner.model.is_gradient_checkpointing == checkpointing
        batch_loss(learner, next_words(IDS, TARGETS, CPU)).backward()
        gradients.append({name: p.grad for name, p in learner.trainable().items() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() == learner.trainable().keys()
    assert all(torch.allclose(value, gradients[1][name], atol=1e-6) for name, value in gradients[0].items())


def test_gradient_checkpointing_that_cannot_be_had(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.LlamaForCausalLM.supports_gradient_checkpointing", False)
    with pytest.raises(ConfigError, match=r"pretrained\.gradient_checkpointing must be false here \(LlamaFor"):
        make(checkpoint("llama"), gradient_checkpointing=True)


class Repeated:
    """One batch, again and again, as the loop wants its tasks."""

    next_index = 0
    length = 24

    def batches(self, windows: int, part: slice, micro: int, device: torch.device) -> list[Batch]:
        return [next_words(IDS, TARGETS, device)]

    def validation(self, device: torch.device) -> Iterator[Batch]:
        yield next_words(IDS, TARGETS, device)


@pytest.mark.parametrize(
    ("method", "quantization"), [("full", "none"), ("lora", "none"), ("lora", "nf4"), ("lora", "int8")]
)
def test_the_loop_trains_and_measures(checkpoint: Checkpoint, method: str, quantization: str, tmp_path: Path) -> None:
    """With an evaluation between steps, and placed and wrapped by accelerate as in every run."""
    learner = make(checkpoint("llama"), method_of(method), quantization=quantization)
    config = TrainingConfig(
        tokens=6 * 48, batch_windows=2, lr=3e-3, precision="fp32", attention="sdpa", points=3, warmup_share=0
    )
    summary = train(learner, Repeated(), config, folder=tmp_path, seed=0, on_point=lambda point: None)
    assert summary.losses == sorted(summary.losses, reverse=True)
    assert summary.losses[-1] < summary.losses[0] - 0.02
    assert summary.trainable_params == learner.num_trainable() > 0


def test_accelerate_leaves_quantised_weights_as_they_are(checkpoint: Checkpoint) -> None:
    for quantization in ("nf4", "int8"):
        learner = make(checkpoint("gpt2"), quantization=quantization)
        expected, state = logits_of(learner), state_of(learner.model)
        learner.place(CPU)
        prepared: Any = Accelerator().prepare_model(learner)
        assert torch.equal(logits_of(prepared), expected)
        assert all(torch.equal(value, state[name]) for name, value in state_of(learner.model).items())


def test_transformers_and_peft_find_nothing_outdated(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options that version 5 removed are warned of, in the log or as a warning, which is an error in tests."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    monkeypatch.setattr(handler, "emit", lambda record: said.append(record.getMessage()))
    monkeypatch.setattr(logging.getLogger("transformers"), "handlers", [handler])
    AutoModelForCausalLM.from_pretrained(checkpoint("llama"), torch_dtype=torch.float32)
    assert [line for line in said if "torch_dtype" in line], "this test no longer hears what is outdated"
    said.clear()
    for quantization in QUANTIZATIONS:
        learner = make(checkpoint("llama"), quantization=quantization, attention="eager", gradient_checkpointing=True)
        take_steps(learner, steps=1)
        learner.save(tmp_path / quantization)
        learner.merged().save_pretrained(tmp_path / f"{quantization}-merged")
    assert said == []
