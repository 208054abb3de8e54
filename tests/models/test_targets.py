"""Target presets: the right layers of every architecture, by their exact names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peft_study.errors import ConfigError
from peft_study.models.adapters import attach
from peft_study.models.config import MethodConfig, PretrainedConfig
from peft_study.models.hub import load_pretrained
from peft_study.models.pretrained import PretrainedLearner
from peft_study.models.targets import kind_of, match, short_names, sides, towers
from tests.models.checkpoints import LAYERS, MLP_WIDTH, SHAPES, WIDTH, WORDS, make_tokenizer

MODERN = {
    "qv": {"self_attn.q_proj", "self_attn.v_proj"},
    "attention": {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"},
    "mlp": {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"},
}
BLOOM = {
    "qv": {"self_attention.query_key_value"},
    "attention": {"self_attention.query_key_value", "self_attention.dense"},
    "mlp": {"mlp.dense_h_to_4h", "mlp.dense_4h_to_h"},
}
EXPECTED = {
    "gpt2": {
        "qv": {"attn.c_attn"},
        "attention": {"attn.c_attn", "attn.c_proj"},
        "mlp": {"mlp.c_fc", "mlp.c_proj"},
    },
    "gpt_neox": {
        "qv": {"attention.query_key_value"},
        "attention": {"attention.query_key_value", "attention.dense"},
        "mlp": {"mlp.dense_h_to_4h", "mlp.dense_4h_to_h"},
    },
    "phi3": {
        "qv": {"self_attn.qkv_proj"},
        "attention": {"self_attn.qkv_proj", "self_attn.o_proj"},
        "mlp": {"mlp.gate_up_proj", "mlp.down_proj"},
    },
    "opt": MODERN
    | {
        "attention": {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"},
        "mlp": {"layers.fc1", "layers.fc2"},
    },
    "phi": MODERN
    | {
        "attention": {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.dense"},
        "mlp": {"mlp.fc1", "mlp.fc2"},
    },
    "bloom": BLOOM,
    "falcon": BLOOM,
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text"), MODERN),
}


def build(kind: str, **changes: Any) -> PreTrainedModel:
    """Return a tiny model with random weights."""
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, vocab_size=WORDS, **SHAPES.get(kind, {}) | {"pad_token_id": None} | changes)
    )


@pytest.mark.parametrize("kind", EXPECTED)
def test_presets_mean_the_same_in_every_architecture(kind: str) -> None:
    model, expected = build(kind), EXPECTED[kind]
    expected = expected | {"all-linear": expected["attention"] | expected["mlp"]}
    for targets, kinds in expected.items():
        layers = match(model, targets).layers
        assert {kind_of(name) for name in layers} == kinds
        assert len(layers) == LAYERS * len(kinds)
        assert all(model.get_submodule(name) is layer for name, layer in layers.items())
        assert all(layer is not model.get_output_embeddings() for layer in layers.values())


@pytest.mark.parametrize(
    ("kind", "name"), [("gpt2", "c_attn"), ("gpt_neox", "query_key_value"), ("bloom", "query_key_value"),
                       ("falcon", "query_key_value"), ("phi3", "qkv_proj")],
)  # fmt: skip
def test_a_fused_projection_is_said_to_hold_more(kind: str, name: str) -> None:
    model = build(kind)
    assert match(model, "qv").notes == (f"qv: {name} also holds k",)
    assert match(model, "attention").notes == match(model, "mlp").notes == match(model, "all-linear").notes == ()


def test_the_summary_says_how_many_of_which() -> None:
    assert match(build("gpt2"), "attention").summary() == "attention: 2 x attn.c_attn, 2 x attn.c_proj"


@pytest.mark.parametrize("targets", ["qv", "attention", "mlp"])
def test_an_unknown_architecture_is_an_error_with_its_layers_and_a_remedy(targets: str) -> None:
    with pytest.raises(ConfigError, match=r"MambaForCausalLM.*mixer\.in_proj.*method\.targets=all-linear") as raised:
        match(build("mamba"), targets)
    assert "\n" not in str(raised.value)


def test_layers_that_are_read_without_being_called_are_left_alone() -> None:
    """The adapters of these would never get a gradient."""
    found = match(build("mamba"), "all-linear")
    assert {kind_of(name) for name in found.layers} == {"mixer.in_proj", "mixer.x_proj"}
    assert found.notes == ("all-linear: left alone: mixer.dt_proj, mixer.out_proj",)


def test_what_no_text_passes_is_left_alone(tmp_path: Path) -> None:
    """Its adapters would never get a gradient, and several processes would wait for one."""
    text = {**SHAPES["gemma3_text"], "vocab_size": WORDS, "pad_token_id": None}
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    images = {"vision_config": vision | {"image_size": 28, "patch_size": 14}, "mm_tokens_per_image": 4}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma3", text_config=text, **images))
    assert list(towers(model)) == ["vision_tower", "multi_modal_projector"]
    for targets in ("qv", "all-linear"):
        assert all(name.startswith("model.language_model.layers.") for name in match(model, targets).layers)
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    learner = PretrainedLearner(PretrainedConfig(name=str(tmp_path), dtype="float32"), MethodConfig(name="full"), 0)
    assert "left as they are, since no text passes them: vision_tower, multi_modal_projector" in learner.notes
    assert learner.trainable()
    assert not any("vision" in name or "projector" in name for name in learner.trainable())


@pytest.mark.parametrize("kind", EXPECTED)
def test_a_model_for_texts_alone_is_passed_whole(kind: str) -> None:
    assert towers(build(kind)) == {}


def test_experts_in_three_dimensions_are_named() -> None:
    model = build("mixtral")
    found = match(model, "all-linear")
    assert {kind_of(name) for name in found.layers} == MODERN["attention"]
    note = "3-D parameters that LoRA on linear layers does not reach: experts.down_proj, experts.gate_up_proj"
    assert found.notes == (note,)
    assert match(model, "attention").notes == ()
    with pytest.raises(ConfigError, match=rf"needs layers for up, down.*{note}"):
        match(model, "mlp")


def test_routers_are_left_alone() -> None:
    """With one output there is no rank to choose, and the choice among experts is not what is studied."""
    shape = SHAPES["llama"] | {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 32, "num_experts": 2}
    model = build("qwen2_moe", **shape, num_experts_per_tok=1)
    found = match(model, "all-linear")
    assert {kind_of(name) for name in found.layers} == MODERN["attention"] | {
        f"shared_expert.{name}" for name in ("gate_proj", "up_proj", "down_proj")
    }
    assert found.notes[0] == "all-linear: left alone: mlp.shared_expert_gate"
    attach(model, MethodConfig(name="lora", rank=4), [], 0)


def test_what_a_preset_does_not_know_is_said() -> None:
    model = build("llama")
    model.model.layers[0].self_attn.strange = nn.Linear(4, 4)
    assert match(model, "attention").notes == ("attention: not known, so left alone: self_attn.strange",)
    assert "model.layers.0.self_attn.strange" in match(model, "all-linear").layers


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "llama", "phi3", "opt"])
@pytest.mark.parametrize("targets", ["qv", "attention", "mlp", "all-linear"])
def test_peft_adapts_what_was_matched_and_nothing_else(kind: str, targets: str) -> None:
    model = build(kind)
    matched = match(model, targets).layers
    method = MethodConfig.model_validate({"name": "lora", "rank": 2, "targets": targets})
    attach(model, method, [], 0)
    adapted = {name.partition(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    assert adapted == set(matched)
    for name, layer in matched.items():
        inputs, outputs = sides(layer)
        wrapped: Any = model.get_submodule(name)
        assert wrapped.lora_A["default"].weight.shape == (2, inputs)
        assert wrapped.lora_B["default"].weight.shape == (outputs, 2)


def test_sides_of_every_kind_of_layer(checkpoint: Callable[[str], Path]) -> None:
    names = {"transformer.h.0.mlp.c_fc": (WIDTH, 4 * WIDTH), "transformer.h.0.mlp.c_proj": (4 * WIDTH, WIDTH)}
    for quantization in ("none", "nf4", "int8"):
        config = PretrainedConfig.model_validate({"name": str(checkpoint("gpt2")), "quantization": quantization})
        model = load_pretrained(config)
        layers = match(model, "mlp").layers
        assert {name: sides(layers[name]) for name in names} == names
        assert isinstance(layers["transformer.h.0.mlp.c_fc"], Conv1D if quantization == "none" else nn.Linear)
    assert MLP_WIDTH != WIDTH


def test_short_names_mean_what_is_wanted_and_no_more() -> None:
    model = nn.Module()
    model.one = nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)})
    model.two = nn.ModuleDict({"a": nn.Linear(1, 1), "c": nn.ModuleDict({"a": nn.Linear(1, 1)})})
    model.a = nn.Linear(1, 1)
    assert short_names(model, ["one.b"]) == ["b"]
    assert short_names(model, ["one.a"]) == ["one.a"]
    assert short_names(model, ["one.a", "two.a", "two.c.a", "a"]) == ["a"]
    assert short_names(model, ["two.c.a", "one.b"]) == ["b", "c.a"]


def test_numbers_of_layers_are_not_confused() -> None:
    model = build("llama", num_hidden_layers=12)
    names = ["model.layers.1.mlp.up_proj"]
    short = short_names(model, names)
    ends = [name for name, _ in model.named_modules() if any(f".{name}".endswith(f".{end}") for end in short)]
    assert ends == names
