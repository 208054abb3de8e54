"""Quantised bases: gradients that survive an evaluation, no side effects, and the numbers of their weights."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from peft_study.errors import ConfigError
from peft_study.models.config import MethodConfig, PretrainedConfig
from peft_study.models.pretrained import PretrainedLearner
from peft_study.models.quantize import bnb, protect, quantization_config, quantized_layers
from peft_study.training.losses import correction_loss

Checkpoint = Callable[[str], Path]
IDS = (torch.arange(48) * 7 % 300).view(2, 24)
EVERYWHERE = torch.ones_like(IDS, dtype=torch.bool)


def make(folder: Path, *, method: dict[str, Any] | None = None, **settings: Any) -> PretrainedLearner:
    config = PretrainedConfig.model_validate({"name": str(folder)} | settings)
    chosen = MethodConfig.model_validate(method or {"name": "lora", "rank": 4})
    return PretrainedLearner(config, chosen, 0)


def gradient_norms(learner: PretrainedLearner) -> dict[str, float]:
    """Return the norm of the gradient of every adapter's second factor, which alone has one at first."""
    learner.train()
    learner.zero_grad()
    logits = learner(IDS, EVERYWHERE, verdict=False)
    correction_loss(logits, IDS.flatten()).backward()
    return {
        name: float(p.grad.norm()) for name, p in learner.trainable().items() if "lora_B" in name and p.grad is not None
    }


@torch.no_grad()
def evaluate(learner: PretrainedLearner) -> Tensor:
    return learner.eval()(IDS, EVERYWHERE, verdict=False)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_gradients_survive_an_evaluation(checkpoint: Checkpoint, kind: str, quantization: str) -> None:
    learner = make(checkpoint(kind), quantization=quantization)
    before, state = gradient_norms(learner), {k: v.clone() for k, v in learner.model.state_dict().items()}
    evaluate(learner)
    after = gradient_norms(learner)
    assert len(before) == len(learner.matched)
    assert all(norm > 0 for norm in before.values())
    assert after == before
    assert all(torch.equal(value, state[name]) for name, value in learner.model.state_dict().items())


@pytest.mark.filterwarnings("ignore:bitsandbytes..gemv_4bit")  # torch's only sign of it, once a process
def test_gradients_do_not_survive_without_the_guard(checkpoint: Checkpoint) -> None:
    """The defect that the guard is for; once this fails, bitsandbytes is mended and the guard can go."""
    if not bnb.functional.has_avx512bf16():
        pytest.skip("this CPU has no AVX512-BF16, so bitsandbytes does not repack its weights")
    learner = make(checkpoint("llama"), quantization="nf4")
    for layer in quantized_layers(learner).values():
        layer.support_avx512bf16_for_cpu = True
    before = gradient_norms(learner)
    evaluate(learner)
    after = gradient_norms(learner)
    last = f"layers.{learner.model.config.num_hidden_layers - 1}.mlp.down_proj"
    dead = {name for name in before if not after.get(name)}
    assert dead, "evaluation left all gradients as they were"
    assert after[next(name for name in before if last in name)] > 0
    assert all(last not in name for name in dead)

    mended = make(checkpoint("llama"), quantization="nf4")
    protect(mended)
    evaluate(mended)
    assert gradient_norms(mended) == before


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_nothing_is_upcast_or_switched_on(checkpoint: Checkpoint, quantization: str) -> None:
    """As `prepare_model_for_kbit_training` would: norms and embeddings in fp32, gradient checkpointing."""
    learner = make(checkpoint("gpt2"), quantization=quantization, dtype="bfloat16")
    kept = {name: p.dtype for name, p in learner.named_parameters() if p.dtype.is_floating_point}
    assert set(kept.values()) == {torch.bfloat16}
    assert any("ln_1" in name for name in kept)
    assert any("c_attn.base_layer.bias" in name for name in kept)
    assert not learner.model.is_gradient_checkpointing
    assert not learner.model.get_input_embeddings()._forward_hooks
    assert {name for name, p in learner.named_parameters() if p.requires_grad} == set(learner.trainable())
    assert all("lora_" in name for name in learner.trainable())
    gradient_norms(learner)
    assert {name: p.dtype for name, p in learner.named_parameters() if p.dtype.is_floating_point} == kept


def test_quantised_is_every_linear_layer_but_the_output_embedding(checkpoint: Checkpoint) -> None:
    for kind, layers in (("llama", 14), ("gpt2", 8)):
        for quantization, cls in (("nf4", bnb.nn.Linear4bit), ("int8", bnb.nn.Linear8bitLt)):
            learner = make(checkpoint(kind), method={"name": "none"}, quantization=quantization)
            found = quantized_layers(learner.model)
            assert len(found) == layers
            assert all(isinstance(layer, cls) for layer in found.values())
            assert type(learner.model.get_output_embeddings()) is nn.Linear
            assert learner.notes == []
            merged: Any = learner.merged()
            with torch.no_grad():
                expected = learner.train()(IDS, EVERYWHERE, verdict=False)
                assert torch.allclose(merged(IDS).logits.flatten(0, 1), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("storage", ["uint8", "float32", "bfloat16"])
def test_storage_and_compute_types(checkpoint: Checkpoint, storage: str, dtype: str) -> None:
    settings = {"method": {"name": "none"}, "quantization": "nf4", "dtype": dtype}
    learner = make(checkpoint("llama"), storage_dtype=storage, **settings)
    for layer in quantized_layers(learner).values():
        assert layer.weight.dtype is getattr(torch, storage)
        assert layer.compute_dtype is getattr(torch, dtype)
        assert layer.weight.quant_type == "nf4"
    expected = evaluate(make(checkpoint("llama"), **settings))
    assert expected.dtype is getattr(torch, dtype)
    assert torch.equal(evaluate(learner), expected)


def test_double_quantisation(checkpoint: Checkpoint) -> None:
    states = {}
    for double in (True, False):
        learner = make(checkpoint("llama"), method={"name": "none"}, quantization="nf4", double_quantization=double)
        states[double] = [layer.weight.quant_state for layer in quantized_layers(learner).values()]
    assert all(state.nested and state.absmax.dtype is torch.uint8 for state in states[True])
    assert all(not state.nested and state.absmax.dtype is torch.float32 for state in states[False])


@pytest.mark.parametrize("kind", ["llama", "gpt2", "phi3"])
def test_cached_weights_are_those_of_nf4(checkpoint: Checkpoint, kind: str, tmp_path: Path) -> None:
    packed = make(checkpoint(kind), quantization="nf4")
    cached = make(checkpoint(kind), quantization="nf4", cache_dequantized=True)
    assert not quantized_layers(cached)
    plain = AutoModelForCausalLM.from_pretrained(checkpoint(kind), dtype=torch.float32)
    assert torch.allclose(evaluate(cached), evaluate(packed), atol=1e-5)
    with torch.no_grad():
        assert not torch.allclose(evaluate(cached), plain(IDS).logits.flatten(0, 1), atol=1e-2)
    for name in cached.matched:
        layer: Any = cached.model.get_submodule(name)
        assert type(layer.get_base_layer()) is (Conv1D if kind == "gpt2" else nn.Linear)
    assert gradient_norms(cached) == pytest.approx(gradient_norms(packed), rel=1e-3)
    assert cached.num_trainable() == packed.num_trainable()
    # Of the same shapes as the plain model's, so it can be saved and loaded as one.
    merged = cached.merged()
    merged.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.allclose(again(IDS).logits.flatten(0, 1), evaluate(packed), atol=1e-5)


def test_a_model_whose_layers_bitsandbytes_does_not_know_is_refused(checkpoint: Checkpoint) -> None:
    for kind in ("falcon", "mamba"):
        with pytest.raises(ConfigError, match=r"pretrained\.quantization must be none for \w+, whose layers"):
            make(checkpoint(kind), quantization="nf4", method={"name": "none"})


def test_what_stays_large_is_said(checkpoint: Checkpoint) -> None:
    learner = make(checkpoint("mixtral"), quantization="nf4")
    assert learner.notes[-1] == "not quantised: experts.down_proj, experts.gate_up_proj"


def test_what_transformers_is_told() -> None:
    assert quantization_config(PretrainedConfig(name="x"), torch.float32) is None
    config: Any = quantization_config(PretrainedConfig(name="x", quantization="int8"), torch.float32)
    assert (config.load_in_8bit, config.load_in_4bit) == (True, False)
    config = quantization_config(PretrainedConfig(name="x", quantization="nf4"), torch.bfloat16)
    assert config.quantization_method() == "nf4"
    assert (config.bnb_4bit_use_double_quant, config.bnb_4bit_compute_dtype) == (True, torch.bfloat16)


@pytest.mark.parametrize("field", ["dtype", "storage_dtype"])
@pytest.mark.parametrize("value", ["float16", "fp16"])
def test_half_precision_is_refused(field: str, value: str) -> None:
    with pytest.raises(ValidationError, match=f"{value} is refused.*use bfloat16 or float32"):
        PretrainedConfig.model_validate({"name": "x", field: value})


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_only_four_bits_are_cached_dequantised(quantization: str) -> None:
    with pytest.raises(ValidationError, match=f"cache_dequantized must be off with quantization={quantization}"):
        PretrainedConfig.model_validate({"name": "x", "cache_dequantized": True, "quantization": quantization})


def test_importing_peft_is_quiet_and_fetches_no_kernel(tmp_path: Path) -> None:
    """bitsandbytes, which peft imports, would ask the package `kernels` for code from the Hub, or say it is missing."""
    (tmp_path / "kernels.py").write_text(
        "def get_kernel(*a, **k):\n    print('fetched')\n    raise OSError('offline')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", "import peft_study.models.adapters, bitsandbytes, kernels"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
