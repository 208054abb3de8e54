"""Bases: built from scratch, saved with tokenizer and card, and loaded with clear errors."""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from peft_study.errors import CheckpointError
from peft_study.files import write_atomic
from peft_study.igsm.families import FamilySettings, family_named
from peft_study.igsm.tokenizer import build_tokenizer, word_ids
from peft_study.models.config import BaseConfig
from peft_study.models.places import base_folder
from peft_study.rng import TORCH_GLOBALS, derive_seed

PRETRAINING_FILE = "pretraining.json"
"""Beside the weights: how the base was pretrained, and what was measured."""


class Architecture(BaseModel):
    """The shape of a base: a Qwen3, that is a Llama with normed queries and keys; biases, untied embeddings.

    The norm of queries and keys is worth about half the tokens at this size. Biases of queries and keys let a head
    look a fixed number of tokens back whatever stands there, which matching names begins with (LOG.md).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int = Field(default=6, ge=1)
    width: int = Field(default=128, ge=8)
    heads: int = Field(default=4, ge=1)
    mlp_width: int = Field(default=320, ge=8)
    local_layers: int = Field(default=2, ge=0)
    """How many layers, from the first, see the last `local_window` tokens only: there the words of a name meet."""
    local_window: int = Field(default=16, ge=1)
    """Tokens that a local layer sees, itself included."""


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file; raise CheckpointError where it is missing or damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); give the folder of a finished trial") from error


def build_base(family: FamilySettings, architecture: Architecture, seed: int) -> Qwen3ForCausalLM:
    """Return a freshly initialised base for `family`; the same seed gives the same weights."""
    config = Qwen3Config(
        vocab_size=len(word_ids(family)),
        hidden_size=architecture.width,
        intermediate_size=architecture.mlp_width,
        num_hidden_layers=architecture.layers,
        num_attention_heads=architecture.heads,
        num_key_value_heads=architecture.heads,
        head_dim=architecture.width // architecture.heads,
        attention_bias=True,
        use_sliding_window=bool(architecture.local_layers),
        sliding_window=architecture.local_window if architecture.local_layers else None,
        layer_types=[
            "sliding_attention" if layer < architecture.local_layers else "full_attention"
            for layer in range(architecture.layers)
        ],
        max_position_embeddings=4 * family.max_tokens,
        tie_word_embeddings=False,
        use_cache=False,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
        dtype=torch.float32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "base"))
        model = Qwen3ForCausalLM(config)
    _look_back(model, architecture.local_layers)
    return model


@torch.no_grad()
def _look_back(model: Qwen3ForCausalLM, local_layers: int, *, planes: int = 4, size: float = 2.0) -> None:
    """Let head h of a local layer begin by looking h + 1 tokens back, whatever stands there.

    With the key's bias at angle 0 and the query's at angle -f b in the rotary plane of frequency f, their product d
    tokens apart is cos(f (d - b)), largest at d = b. The `planes` fastest planes tell neighbours apart; biases of
    `size` outweigh what fresh matrices add. Training moves them where it likes; a number then knows from the start
    whose it is, and names are matched after a fraction of the tokens (LOG.md).
    """
    width = model.config.head_dim
    frequencies = model.model.rotary_emb.inv_freq[:planes]
    for layer in list(model.model.layers)[:local_layers]:
        attention: Any = layer.self_attn
        for head in range(model.config.num_attention_heads):
            real = slice(head * width, head * width + len(frequencies))
            imaginary = slice(real.start + width // 2, real.stop + width // 2)
            angle = -(head + 1) * frequencies
            attention.k_proj.bias[real] = size
            attention.q_proj.bias[real] = size * torch.cos(angle)
            attention.q_proj.bias[imaginary] = size * torch.sin(angle)


def save_base(model: Qwen3ForCausalLM, family: FamilySettings, folder: Path, pretraining: dict[str, Any]) -> None:
    """Write weights (fp32 safetensors), tokenizer and, last and atomically, `pretraining.json` to `folder`."""
    model.save_pretrained(folder)
    build_tokenizer(family).save_pretrained(folder)
    write_atomic(folder / PRETRAINING_FILE, json.dumps(pretraining, indent=2, sort_keys=True) + "\n")


def _check_files(folder: Path, remedy: str) -> None:
    """Raise CheckpointError unless weights and config are there, whole, and those of a Qwen3.

    Without this, `transformers` builds a model of its default size, 32 GB, where `config.json` is missing, and
    fills in random weights where the checkpoint is of another kind.
    """
    weights, config = folder / "model.safetensors", folder / "config.json"
    for path in (weights, config):
        if not path.is_file():
            raise CheckpointError(f"no checkpoint in {folder} ({path.name} is missing); {remedy}")
    try:
        with safe_open(weights, framework="pt") as file:
            file.keys()
    except SafetensorError as error:
        raise CheckpointError(
            f"the checkpoint {weights} is truncated or no safetensors file ({error}); {remedy}"
        ) from error
    try:
        read = json.loads(config.read_text())
        kind = read["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{config} is damaged ({error}); {remedy}") from error
    if kind != Qwen3Config.model_type:
        raise CheckpointError(
            f"the checkpoint in {folder} must be a {Qwen3Config.model_type}, but is a {kind}; {remedy}"
        )
    heads, key_heads = read.get("num_attention_heads"), read.get("num_key_value_heads")
    if heads != key_heads:
        raise CheckpointError(
            f"a base must have as many key heads as query heads, but {config} says {key_heads} and {heads}; {remedy}"
        )


def load_model(folder: Path, *, remedy: str = "give the folder of a saved checkpoint") -> Qwen3ForCausalLM:
    """Return the checkpoint in `folder` in fp32; raise CheckpointError where it is missing, truncated or foreign."""
    _check_files(folder, remedy)
    try:
        with TORCH_GLOBALS:
            loaded: Any = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        model, report = loaded
    except (OSError, ValueError, RuntimeError, StrictDataclassError) as error:
        raise CheckpointError(
            f"the checkpoint in {folder} cannot be read ({str(error).splitlines()[0]}); {remedy}"
        ) from error
    if strange := sorted({*report["missing_keys"], *report["unexpected_keys"]}):
        raise CheckpointError(
            f"the checkpoint in {folder} does not hold this model ({strange[0]} does not fit); {remedy}"
        )
    model.config.use_cache = False
    return model


def load_base(config: BaseConfig, family: str) -> Qwen3ForCausalLM:
    """Return the base of `config`; the error of a missing or damaged one says what to do."""
    folder = base_folder(config, family)
    remedy = f"make it with `make pretrain FAMILY={family} BASE={config.name} SEED={config.seed}`, or set base.path"
    if config.path:
        remedy = "set base.path to the folder of a whole base"
    elif folder.exists():
        remedy = f"restore {folder} (from git, where it came with the repository), or move it away and {remedy}"
    model = load_model(folder, remedy=remedy)
    words, rows = len(word_ids(family_named(family))), model.config.vocab_size
    if rows != words:
        raise CheckpointError(
            f"family {family} has {words} words, but the checkpoint in {folder} knows {rows}; {remedy}"
        )
    return model


def read_pretraining(folder: Path) -> dict[str, Any]:
    """Return how the base in `folder` was pretrained; raise CheckpointError where that is not recorded."""
    path = folder / PRETRAINING_FILE
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} has no {PRETRAINING_FILE}, so its family is unknown; give a base made by `make pretrain`"
        ) from None
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is damaged ({error}); make the base again") from error
