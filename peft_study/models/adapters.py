"""Low-rank adapters by peft: which matrices are adapted, and which rows of the embeddings are trained."""

import math
import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners import lora
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import TrainableTokensWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Qwen3ForCausalLM

from peft_study.errors import CheckpointError, ConfigError
from peft_study.models.config import MethodConfig
from peft_study.rng import derive_seed

TARGET_MODULES: dict[str, tuple[str, ...]] = {
    "qv": ("q_proj", "v_proj"),
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
    "all-linear": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}
INPUT_EMBEDDING, OUTPUT_EMBEDDING = "embed_tokens", "lm_head"


def matched_modules(model: nn.Module, targets: str) -> dict[str, nn.Linear]:
    """Return the linear layers that `targets` names; raise ConfigError where it names none."""
    names = TARGET_MODULES.get(targets, (targets,))
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    found = {name: module for name, module in linears.items() if name.rpartition(".")[2] in names}
    if not found:
        there = sorted({name.rpartition(".")[2] for name in linears})
        raise ConfigError(f"method.targets={targets!r} matches no module of this model; it has {', '.join(there)}")
    return found


def _check_rank(modules: dict[str, nn.Linear], rank: int) -> None:
    name, narrow = min(modules.items(), key=lambda item: min(item[1].weight.shape))
    width = min(narrow.weight.shape)
    if rank > width:
        raise ConfigError(
            f"method.rank must be at most the width of every adapted layer, {width} for {name}, but got {rank}; "
            "use a smaller rank, or method.name=full"
        )


def lora_config(model: Qwen3ForCausalLM, method: MethodConfig, row_ids: list[int]) -> LoraConfig:
    """Return peft's config for `method`; `row_ids` are the special tokens whose embedding rows are trained."""
    modules = matched_modules(model, method.targets)
    _check_rank(modules, method.rank)
    targets = sorted({name.rpartition(".")[2] for name in modules})
    alpha = method.lora_alpha or 2 * method.rank
    rows: dict[str, list[int]] = {}
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    if method.embeddings == "rows":
        rows = {INPUT_EMBEDDING: row_ids, OUTPUT_EMBEDDING: row_ids}
    elif method.embeddings == "lora_2r":
        # The same scale alpha / rank for the embedding as for the rest, at twice the rank (Part 2.2, section 5).
        if 2 * method.rank > (width := model.config.hidden_size):
            raise ConfigError(
                f"method.rank must be at most half the model's width {width} with method.embeddings=lora_2r, "
                f"but got {method.rank}; use a smaller rank, or method.embeddings=rows"
            )
        rows = {OUTPUT_EMBEDDING: row_ids}
        targets.append(INPUT_EMBEDDING)
        rank_pattern = {INPUT_EMBEDDING: 2 * method.rank}
        alpha_pattern = {INPUT_EMBEDDING: (math.sqrt(2) if method.rslora else 2) * alpha}
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=method.rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]  # peft takes floats, its annotation says int
        lora_dropout=method.dropout,
        use_rslora=method.rslora,
        target_modules=targets,
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
        trainable_token_indices=rows or None,
    )


def attach(model: Qwen3ForCausalLM, method: MethodConfig, row_ids: list[int], seed: int) -> PeftModel:
    """Return `model` with a fresh adapter; the same seed gives the same initial values."""
    config = lora_config(model, method, row_ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "adapter"))
        adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    assert isinstance(adapted, PeftModel)
    return adapted


def embedding_adapter(model: Qwen3ForCausalLM, rank: int, seed: int) -> PeftModel:
    """Return `model` with a rank-`rank` update of its input embedding alone (the V-probe of Part 2.1)."""
    if rank > (width := model.config.hidden_size):
        raise ConfigError(f"method.rank must be at most the model's width {width}, but got {rank}")
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=[INPUT_EMBEDDING])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "adapter"))
        adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    assert isinstance(adapted, PeftModel)
    return adapted


def load_adapter(model: Qwen3ForCausalLM, folder: Path) -> PeftModel:
    """Return `model` with the adapter saved in `folder`; CheckpointError where it cannot be read or is foreign."""
    for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise CheckpointError(f"no adapter in {folder} ({name} is missing); give the folder of a saved one")
    try:
        saved = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # an error below
            adapted = PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=False)
        fits = saved.keys() == get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"the adapter in {folder} cannot be read ({str(error).splitlines()[0]})") from error
    if not fits:
        raise CheckpointError(f"the adapter in {folder} is of another model; give the one it was trained on")
    return adapted


_ADAPTER = "default"
"""What peft calls the one adapter of a model."""


Role = Literal["down", "up", "rows", "table_down", "table_up"]

_ROLES: dict[str, Role] = {
    f".lora_A.{_ADAPTER}.weight": "down",
    f".lora_B.{_ADAPTER}.weight": "up",
    f".token_adapter.trainable_tokens_delta.{_ADAPTER}": "rows",
    f".lora_embedding_A.{_ADAPTER}": "table_down",
    f".lora_embedding_B.{_ADAPTER}": "table_up",
}


def place_of(parameter: str) -> tuple[str, Role]:
    """Return the module that a parameter of an adapter changes, and what of it the parameter is.

    >>> place_of("model.model.layers.0.mlp.up_proj.lora_A.default.weight")
    ('model.model.layers.0.mlp.up_proj', 'down')
    """
    for suffix, role in _ROLES.items():
        if parameter.endswith(suffix):
            return parameter.removesuffix(suffix), role
    raise KeyError(parameter)


class Linear(NamedTuple):
    """A linear layer with what an adapter adds to it; O outputs, I inputs, R rank."""

    weight_OI: Tensor
    bias_O: Tensor | None
    down_RI: Tensor | None
    """None where nothing is adapted."""
    up_OR: Tensor | None
    scale: float | Tensor
    dropout: float


def read_linear(module: nn.Module) -> Linear:
    """Return the weights of a linear layer, whether peft has wrapped it or not."""
    if not isinstance(module, lora.Linear):
        assert isinstance(module, nn.Linear), type(module)
        return Linear(module.weight, module.bias, None, None, 0.0, 0.0)
    base: Any = module.get_base_layer()
    dropout = module.lora_dropout[_ADAPTER]
    return Linear(
        base.weight,
        base.bias,
        module.lora_A[_ADAPTER].weight,  # pyright: ignore[reportArgumentType]
        module.lora_B[_ADAPTER].weight,  # pyright: ignore[reportArgumentType]
        module.scaling[_ADAPTER],
        dropout.p if isinstance(dropout, nn.Dropout) else 0.0,
    )


def scale_of(module: nn.Module) -> float:
    """Return the factor of an adapted layer's update: alpha / rank, or alpha / sqrt(rank) with rslora."""
    assert isinstance(module, lora.LoraLayer), type(module)
    return module.scaling[_ADAPTER]


def read_table(module: nn.Module) -> Tensor:
    """Return the table [V, D] of an input or output embedding with what an adapter changes in it."""
    if isinstance(module, TrainableTokensWrapper):
        return module.token_adapter.get_merged_weights([_ADAPTER])  # pyright: ignore
    if isinstance(module, lora.Embedding):
        base: Any = module.get_base_layer()
        down, up = module.lora_embedding_A[_ADAPTER], module.lora_embedding_B[_ADAPTER]
        return base.weight + (up @ down).T * module.scaling[_ADAPTER]
    assert isinstance(module, nn.Embedding | nn.Linear), type(module)
    return module.weight
