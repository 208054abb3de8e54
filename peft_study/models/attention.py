"""Attention within the documents of a packed window: what a position may see, and a CPU kernel that computes no more.

Shapes: B windows, T tokens, H heads, D values of a head. A position sees an interval that ends with itself; where it
begins (`first_BT`) says the same as a mask [B, T, T]. The kernel is native/attention.cpp.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from peft_study.errors import KernelError
from peft_study.native import address, library, threads


def first_seen(ids_BT: Tensor, end_id: int, window: int = 0) -> Tensor:
    """Return the first position [B, T] that each position sees: the start of its document, which an [END] opens.

    With a `window` none sees what lies that many tokens back or more.
    """
    at_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    first_BT = torch.where(ids_BT == end_id, at_T, 0).cummax(1).values
    return torch.maximum(first_BT, at_T - (window - 1)) if window else first_BT


def additive_mask(first_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the mask [B, 1, T, T] that is added to the logits of attention: 0 where a position sees another."""
    at_T = torch.arange(first_BT.shape[1], device=first_BT.device)
    seen_BTT = (at_T >= first_BT[:, :, None]) & (at_T <= at_T[:, None])
    nothing = torch.zeros(seen_BTT.shape, dtype=dtype, device=first_BT.device)
    return nothing.masked_fill(~seen_BTT, torch.finfo(dtype).min)[:, None]


def _library(head_width: int) -> ctypes.CDLL:
    """Return the kernel for heads of `head_width` values; raise KernelError where it cannot be had."""
    if head_width % 16:
        raise KernelError(f"the width of a head must be a multiple of 16 for the kernel, but is {head_width}")
    return library("attention", HEAD_WIDTH=head_width)


def require_kernel(head_width: int) -> None:
    """Raise KernelError where the kernel cannot be had on this machine for heads of `head_width` values."""
    _library(head_width)


def _common(first_BT: Tensor, scale: float, *tensors: Tensor) -> tuple[Any, ...]:
    """Return what both kernels take between their tensors: strides, sizes, scale, and who computes."""
    batch, heads, length, _ = tensors[0].shape
    strides = [stride for tensor in tensors for stride in tensor.stride()[:3]]
    assert first_BT.is_contiguous()
    assert first_BT.dtype == torch.int32
    assert tensors[0].dtype in (torch.float32, torch.bfloat16)
    assert all(tensor.dtype == tensors[0].dtype and tensor.stride(3) == 1 for tensor in tensors)
    sizes = ctypes.c_long(batch), ctypes.c_long(heads), length
    return (ctypes.c_long * 9)(*strides), *sizes, ctypes.c_float(scale), *threads()


def attend_forward(query: Tensor, key: Tensor, value: Tensor, first_BT: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return the output [B, T, H, D] and the logarithm of the sum of exponentials [B, H, T], in fp32."""
    batch, heads, length, width = query.shape
    output = query.new_empty(batch, length, heads, width)
    logsums = torch.empty(query.shape[:3])
    _library(width).attention_forward(
        query.dtype is torch.bfloat16, *map(address, (query, key, value, first_BT)),
        *_common(first_BT, scale, query, key, value), *map(address, (output, logsums)),
    )  # fmt: skip
    return output, logsums


def attend_backward(kept: Sequence[Tensor], slope: Tensor, scale: float, slopes: Sequence[Tensor]) -> None:
    """Write the gradients of query, key and value to `slopes`, each [B, T, H, D], dense but for one stride of T.

    `kept`: query, key, value and first_BT, of which `attend_forward` made output and logsums.
    """
    (query, key, value, first_BT, output, logsums), slope = kept, slope.contiguous()
    apart = slopes[0].stride(1)
    length, width = output.shape[1], output.shape[3]
    assert all(each.stride() == (length * apart, apart, width, 1) for each in slopes)
    _library(width).attention_backward(
        query.dtype is torch.bfloat16, *map(address, (query, key, value, output, slope, first_BT, logsums)),
        *_common(first_BT, scale, query, key, value), ctypes.c_long(apart), *map(address, slopes),
    )  # fmt: skip


_attend = torch.library.custom_op("peft_study::varlen_attention", attend_forward, mutates_args=(), device_types="cpu")


@_attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, first_BT: Tensor, scale: float) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    batch, heads, length, width = query.shape
    logsums = query.new_empty(batch, heads, length, dtype=torch.float32)
    return query.new_empty(batch, length, heads, width), logsums


@torch.library.custom_op("peft_study::varlen_attention_backward", mutates_args=(), device_types="cpu")
def _attend_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    first_BT: Tensor,
    output: Tensor,
    logsums: Tensor,
    slope: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value, laid out as the output is: [B, T, H, D]."""
    slopes = torch.empty_like(output), torch.empty_like(output), torch.empty_like(output)
    attend_backward((query, key, value, first_BT, output, logsums), slope, scale, slopes)
    return slopes


@_attend_backward.register_fake
def _(
    query: Tensor,  # noqa: ARG001
    key: Tensor,  # noqa: ARG001
    value: Tensor,  # noqa: ARG001
    first_BT: Tensor,  # noqa: ARG001
    output: Tensor,
    logsums: Tensor,  # noqa: ARG001
    slope: Tensor,  # noqa: ARG001
    scale: float,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(output), torch.empty_like(output), torch.empty_like(output)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, first_BT, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, first_BT, *output)


def _backward(ctx: Any, slope: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
    slopes = _attend_backward(*ctx.saved_tensors, slope, ctx.scale)
    query, key, value = (each.transpose(1, 2) for each in slopes)
    return query, key, value, None, None


_attend.register_autograd(_backward, setup_context=_keep)


def varlen_attention(query: Tensor, key: Tensor, value: Tensor, first_BT: Tensor, scale: float) -> Tensor:
    """Return attention [B, T, H, D] of query, key and value [B, H, T, D] over the intervals that `first_BT` begins.

    All in fp32, or all in bf16, on a CPU; `first_BT` in int32. The same numbers as masked-dense attention but for
    rounding: bf16 is computed in fp32, on processors with AMX and where D is a multiple of 32 in its tiles, which take
    weights in bf16 and sum in fp32. Results do not depend on the number of threads.
    """
    rows = (each if each.stride(3) == 1 else each.contiguous() for each in (query, key, value))
    return _attend(*rows, first_BT, scale)[0]
