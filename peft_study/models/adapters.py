"""Low-rank adapters by peft: which matrices are adapted, and which rows of the embeddings are trained."""

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from peft_study.models.quantize import dequantized, forget_quantization, is_quantized  # isort: skip  # before peft: quiet
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners import lora
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import TrainableTokensWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peft_study.errors import CheckpointError, ConfigError
from peft_study.models.config import MethodConfig
from peft_study.models.targets import Layer, matched_modules, short_names, sides
from peft_study.rng import derive_seed


def _check_rank(modules: dict[str, Layer], rank: int) -> None:
    name, narrow = min(modules.items(), key=lambda item: min(sides(item[1])))
    width = min(sides(narrow))
    if rank > width:
        raise ConfigError(
            f"method.rank must be at most the width of every adapted layer, {width} for {name}, but got {rank}; "
            "use a smaller rank, or method.name=full"
        )


def _embedding_names(model: PreTrainedModel) -> tuple[str, str]:
    """Return what peft calls the input and the output embedding."""
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    names = [next(name for name, module in model.named_modules() if module is table) for table in tables]
    return short_names(model, names[:1])[0], short_names(model, names[1:])[0]


def width_of(model: PreTrainedModel) -> int:
    """Return how many values stand for a word in the input embedding."""
    table: Any = model.get_input_embeddings()
    return table.embedding_dim


def lora_config(model: PreTrainedModel, method: MethodConfig, row_ids: list[int]) -> LoraConfig:
    """Return peft's config for `method`; `row_ids` are the tokens whose rows of the embeddings are trained."""
    modules = matched_modules(model, method.targets)
    _check_rank(modules, method.rank)
    targets = short_names(model, modules)
    alpha = method.lora_alpha or 2 * method.rank
    input_name, output_name = _embedding_names(model)
    rows: dict[str, list[int]] = {}
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    if method.embeddings == "rows" and row_ids:
        rows = {input_name: row_ids, output_name: row_ids}
    elif method.embeddings == "lora_2r":
        # The same scale alpha / rank for the embedding as for the rest, at twice the rank (Part 2.2, section 5).
        if 2 * method.rank > (width := width_of(model)):
            raise ConfigError(
                f"method.rank must be at most half the model's width {width} with method.embeddings=lora_2r, "
                f"but got {method.rank}; use a smaller rank, or method.embeddings=rows"
            )
        rows = {output_name: row_ids} if row_ids else {}
        targets.append(input_name)
        rank_pattern = {input_name: 2 * method.rank}
        alpha_pattern = {input_name: (math.sqrt(2) if method.rslora else 2) * alpha}
    if rows and getattr(model.get_output_embeddings(), "bias", None) is not None:
        raise ConfigError(
            f"method.embeddings must be none for {type(model).__name__}, whose output embedding has a bias that peft "
            f"would drop with the rows of new tokens, but got {method.embeddings}"
        )
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=method.rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]  # peft takes floats, its annotation says int
        lora_dropout=method.dropout,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in modules.values()),
        use_rslora=method.rslora,
        target_modules=targets,
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
        trainable_token_indices=rows or None,
    )


@contextmanager
def _without_news() -> Iterator[None]:
    """Keep peft from warning of what is meant or is an error below."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found missing adapter keys")
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to")
        # An update of the input embedding alone is what is wanted; `merged_copy` unties the two.
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True` and a tied layer")
        yield


def _add(model: PreTrainedModel, config: LoraConfig, seed: int, revision: str = "") -> PeftModel:
    assert not any(isinstance(module, lora.LoraLayer) for module in model.modules()), "there is an adapter already"
    config.revision = revision or None
    with torch.random.fork_rng(devices=[]), _without_news():
        torch.manual_seed(derive_seed(seed, "adapter"))
        adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    assert isinstance(adapted, PeftModel)
    return adapted


def attach(
    model: PreTrainedModel, method: MethodConfig, row_ids: list[int], seed: int, *, revision: str = ""
) -> PeftModel:
    """Return `model` with a fresh adapter; the same seed gives the same initial values.

    `revision` of the base on the Hub is written beside its name when the adapter is saved.
    """
    return _add(model, lora_config(model, method, row_ids), seed, revision)


def embedding_adapter(model: PreTrainedModel, rank: int, seed: int, *, revision: str = "") -> PeftModel:
    """Return `model` with a rank-`rank` update of its input embedding alone (the V-probe of Part 2.1)."""
    if rank > (width := width_of(model)):
        raise ConfigError(f"method.rank must be at most the model's width {width}, but got {rank}")
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=[_embedding_names(model)[0]])
    return _add(model, config, seed, revision)


def load_adapter(model: PreTrainedModel, folder: Path, *, trainable: bool = False) -> PeftModel:
    """Return `model` with the adapter saved in `folder`; CheckpointError where it cannot be read or is foreign."""
    for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise CheckpointError(f"no adapter in {folder} ({name} is missing); give the folder of a saved one")
    try:
        saved = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
        with _without_news():
            adapted = PeftModel.from_pretrained(model, folder, is_trainable=trainable, autocast_adapter_dtype=False)
        whole = any("lora" not in key and "trainable_tokens" not in key for key in saved)
        fits = saved.keys() == get_peft_model_state_dict(adapted, save_embedding_layers=whole).keys()
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


def _merged(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a plain layer that gives what `module` gives, which has an adapter, is quantised, or both."""
    has_rows, has_update = isinstance(module, TrainableTokensWrapper), isinstance(module, lora.LoraLayer)
    wrapped: Any = module
    base = wrapped.original_module if has_rows else wrapped.get_base_layer() if has_update else wrapped
    # The weight is made anew below, so it need not be copied.
    plain: Any = dequantized(base, dtype) if is_quantized(base) else copy.deepcopy(base, {id(base.weight): base.weight})
    plain._forward_hooks.clear()
    weight = plain.weight.detach()
    if has_rows:
        weight = wrapped.token_adapter.get_merged_weights([_ADAPTER]).detach()
    elif has_update:
        change = wrapped.get_delta_weight(_ADAPTER).detach()
        # peft turns the update of a Conv1D, but not that of a quantised layer that was one.
        change = change.T if isinstance(plain, Conv1D) and is_quantized(base) else change
        weight = (weight.float() + change.float()).to(weight.dtype)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    return plain


def merged_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Return a plain copy of `model` with its adapter merged in and quantised layers dequantised; `model` stays.

    Embeddings that are tied come out tied, unless the adapter changes one of them alone.
    """
    memo: dict[int, Any] = {}
    inside = "\0"
    for name, module in model.named_modules():
        wrapped: Any = module
        if name.startswith(inside):
            continue
        if isinstance(module, lora.LoraLayer | TrainableTokensWrapper) or is_quantized(module):
            memo[id(module)], inside = _merged(wrapped, model.dtype), f"{name}."
    copied = copy.deepcopy(model, memo)
    forget_quantization(copied)
    for attribute in ("peft_config", "hf_device_map"):
        copied.__dict__.pop(attribute, None)
    copied.requires_grad_(False)
    copied.get_input_embeddings()._forward_hooks.clear()  # of gradient checkpointing
    tables: Any = copied.get_input_embeddings(), copied.get_output_embeddings()
    if copied.config.tie_word_embeddings and tables[0].weight is not tables[1].weight:
        if torch.equal(tables[0].weight, tables[1].weight):
            tables[1].weight = tables[0].weight
        else:
            copied.config.tie_word_embeddings = False
            copied.all_tied_weights_keys = {}
    return copied.eval()
