"""Quantised bases by bitsandbytes: how they are loaded, what must be mended in them, and the way back.

`prepare_model_for_kbit_training` of peft is not used: it turns everything that is not quantised into fp32 and switches
gradient checkpointing on. What else it does, freezing the base, the learner does itself.
"""

import logging
import sys
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peft_study.errors import ConfigError
from peft_study.models.config import PretrainedConfig
from peft_study.models.targets import UNCALLED, expert_parameters, kind_of, linear_layers

_NEWS = {
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast",
}
"""Logger to the beginning of what it need not say: that a kernel which is not wanted is missing, once a process, and
how LLM.int8() is defined, at every product."""


def _load() -> Any:
    """Return bitsandbytes, imported without its news.

    On CPUs with AVX512-BF16 it asks the package `kernels` for a kernel, which that would fetch from the Hub and run.
    The kernel is for packed weights, which `protect` forbids, so `kernels` is kept out of sight.
    """
    for name, beginning in _NEWS.items():
        logging.getLogger(name).addFilter(lambda record, beginning=beginning: not str(record.msg).startswith(beginning))
    absent = object()
    kernels: Any = sys.modules.get("kernels", absent)
    sys.modules["kernels"] = None  # pyright: ignore[reportArgumentType]  # makes an import of it fail
    try:
        import bitsandbytes
    finally:
        if kernels is absent:
            del sys.modules["kernels"]
        else:
            sys.modules["kernels"] = kernels
    return bitsandbytes


bnb = _load()


def quantization_config(config: PretrainedConfig, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """Return what transformers needs to know to load a base that computes in `dtype`; None without quantisation."""
    if config.quantization == "none":
        return None
    if config.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=config.double_quantization,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=getattr(torch, config.storage_dtype),
    )


def is_quantized(module: nn.Module) -> bool:
    """Return whether `module` is a quantised linear layer."""
    return isinstance(module, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt))


def quantized_layers(model: nn.Module) -> dict[str, Any]:
    """Return the quantised linear layers of `model` by name."""
    return {name: module for name, module in model.named_modules() if is_quantized(module)}


def protect(model: nn.Module) -> None:
    """Keep 4-bit layers from repacking their weights when a CPU with AVX512-BF16 evaluates.

    bitsandbytes 0.50 packs them anew for a kernel that has no gradient, and leaves them so: after one evaluation every
    adapter below the last 4-bit layer trains with gradients of zero, without an error. Its way back is lossy too.
    """
    for layer in quantized_layers(model).values():
        layer.support_avx512bf16_for_cpu = False


def _weight(layer: Any) -> Tensor:
    """Return the weight [O, I] that a quantised layer stands for."""
    weight = layer.weight
    if isinstance(layer, bnb.nn.Linear4bit):
        return bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    # The scales move from the weight to the state at the first use.
    scales = layer.state.SCB if weight.SCB is None else weight.SCB
    return bnb.functional.int8_vectorwise_dequant(weight.data, scales)


def dequantized(layer: Any, dtype: torch.dtype) -> nn.Linear | Conv1D:
    """Return a layer of the kind that was quantised, with the weights [O, I], or [I, O] for Conv1D, of `layer`."""
    weight = _weight(layer).to(dtype)
    with torch.device("meta"):
        if issubclass(layer.source_cls, Conv1D):
            plain, weight = Conv1D(layer.out_features, layer.in_features), weight.T.contiguous()
        else:
            plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
    return plain


def forget_quantization(model: PreTrainedModel) -> None:
    """Let `model`, whose layers are plain by now, know nothing of having been quantised."""
    quantizer: Any = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.remove_quantization_config(model)
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config.__dict__.pop("_is_quantized", None)
    model.__dict__.update(is_loaded_in_4bit=False, is_loaded_in_8bit=False)


def cache_dequantized(model: PreTrainedModel) -> None:
    """Replace the quantised layers of `model` by plain ones with the same numbers."""
    for name, layer in quantized_layers(model).items():
        model.set_submodule(name, dequantized(layer, model.dtype))
    forget_quantization(model)


def unquantized(model: PreTrainedModel) -> list[str]:
    """Return the kinds of weights that bitsandbytes has left as they were though they are large.

    It knows plain linear layers only, not subclasses and experts. Raises ConfigError where those are all, or where a
    quantised weight is read past its layer.
    """
    done = quantized_layers(model)
    left = {kind_of(name) for name in linear_layers(model) if name not in done}
    if not done or any(kind_of(name) in UNCALLED for name in done):
        raise ConfigError(
            f"pretrained.quantization must be none for {type(model).__name__}, whose layers bitsandbytes cannot hold; "
            "set pretrained.quantization=none, or give another model"
        )
    return sorted(left) + expert_parameters(model)
