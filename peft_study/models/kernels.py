"""What a layer does between its matrix products, by kernels: native/layers.cpp, native/heads.h, native/attention.cpp.

Each is one pass forward and one backward over dense fp32 or bf16 tensors on a CPU, computed in fp32, but for the
weights of bf16 attention in the tiles of AMX; what a backward pass can compute again from its inputs is not kept. Sums
over rows are made of parts of a fixed size, so results do not depend on the number of threads.

Shapes: B windows, T tokens, D model width, H heads, E head width, I inner width.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from peft_study.models.attention import attend_backward, attend_forward
from peft_study.native import address, library, threads


def _half(tensor: Tensor) -> bool:
    assert tensor.is_cpu
    assert tensor.dtype in (torch.float32, torch.bfloat16)
    return tensor.dtype is torch.bfloat16


def _rows(x: Tensor) -> tuple[ctypes.c_long, ctypes.c_long]:
    """Return how many rows `x` has, and their width."""
    return ctypes.c_long(x.numel() // x.shape[-1]), ctypes.c_long(x.shape[-1])


def _sums(kernel: ctypes.CDLL, rows: int, *shape: int) -> Tensor:
    """Return room for what each part of `rows` rows adds to a sum over them, of `shape`."""
    return torch.empty(-(-rows // kernel.rows_of_a_part()), *shape)


class _Norm(torch.autograd.Function):
    """An RMS norm of x, or of x + update, which is returned too: (sum, its norm)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, update: Tensor | None, weight: Tensor, eps: float) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert weight.dtype is x.dtype
        assert update is None or (update.dtype, update.shape) == (x.dtype, x.shape)
        assert x.shape[-1] % 16 == 0
        x, weight, update = x.contiguous(), weight.contiguous(), None if update is None else update.contiguous()
        total, output = None if update is None else torch.empty_like(x), torch.empty_like(x)
        library("layers").layer_norm_forward(
            _half(x), *map(address, (x, update, weight)), ctypes.c_float(eps), *_rows(x), *threads(),
            *map(address, (total, output)),
        )  # fmt: skip
        ctx.save_for_backward(x if total is None else total, weight)
        ctx.eps = eps
        return output if total is None else (total, output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        kernel, slope = library("layers"), slopes[-1].contiguous()
        past = slopes[0].contiguous() if len(slopes) > 1 else None
        x_slope = torch.empty_like(x)
        sums = _sums(kernel, x.numel() // x.shape[-1], x.shape[-1]) if ctx.needs_input_grad[2] else None
        kernel.layer_norm_backward(
            _half(x), *map(address, (x, weight, slope, past)), ctypes.c_float(ctx.eps), *_rows(x), *threads(),
            *map(address, (x_slope, sums)),
        )  # fmt: skip
        weight_slope = None if sums is None else sums.sum(0).to(weight.dtype)
        return x_slope, None if past is None else x_slope, weight_slope, None


def norm(x_BTD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Return the RMS norm of each row."""
    return _Norm.apply(x_BTD, None, weight_D, eps)  # pyright: ignore[reportReturnType]


def add_norm(x_BTD: Tensor, update_BTD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return x + update, and the RMS norm of each of its rows."""
    return _Norm.apply(x_BTD, update_BTD, weight_D, eps)  # pyright: ignore[reportReturnType]


def _of_heads(qkv: Tensor, how: Sequence[Tensor], eps: float) -> tuple[Any, ...]:
    """Return what both kernels of heads take before what they write to; `how`: weights, cos and sin."""
    batch, length, _, heads, _ = qkv.shape
    sizes = (ctypes.c_long(size) for size in (batch * length, heads, length))
    return _half(qkv), *map(address, (qkv, *how)), ctypes.c_float(eps), *sizes, *threads()


class _SelfAttention(torch.autograd.Function):
    """Attention of normed and rotated queries and keys of qkv [B, T, 3, H, E]; its output is [B, T, H, E]."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        qkv: Tensor,
        q_norm: Tensor,
        k_norm: Tensor,
        first_BT: Tensor,
        cos_TE: Tensor,
        sin_TE: Tensor,
        eps: float,
    ) -> Tensor:
        qkv = qkv.contiguous()
        how = torch.stack((q_norm, k_norm)).float(), cos_TE.float().contiguous(), sin_TE.float().contiguous()
        batch, length, _, heads, width = qkv.shape
        turned = qkv.new_empty(batch, length, 2, heads, width)
        library("attention", HEAD_WIDTH=width).heads_forward(*_of_heads(qkv, how, eps), address(turned))
        query, key, value = (each.transpose(1, 2) for each in (*turned.unbind(2), qkv[:, :, 2]))
        output, logsums = attend_forward(query, key, value, first_BT, width**-0.5)
        ctx.save_for_backward(qkv, turned, output, logsums, first_BT, *how)
        ctx.eps, ctx.dtype = eps, q_norm.dtype
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        qkv, turned, output, logsums, first_BT, *how = ctx.saved_tensors
        batch, length, _, _, width = qkv.shape
        query, key, value = (each.transpose(1, 2) for each in (*turned.unbind(2), qkv[:, :, 2]))
        slopes, kernel = torch.empty_like(qkv), library("attention", HEAD_WIDTH=width)
        attend_backward((query, key, value, first_BT, output, logsums), slope, width**-0.5, slopes.unbind(2))
        sums = _sums(kernel, batch * length, 2, width) if any(ctx.needs_input_grad[1:3]) else None
        kernel.heads_backward(*_of_heads(qkv, how, ctx.eps), *map(address, (slopes, sums)))
        q_slope, k_slope = (None, None) if sums is None else sums.sum(0).to(ctx.dtype)
        return slopes, q_slope, k_slope, None, None, None, None


def self_attention(
    qkv_BT3HE: Tensor,
    q_norm_E: Tensor,
    k_norm_E: Tensor,
    first_BT: Tensor,
    turns: tuple[Tensor, Tensor],
    eps: float,
) -> Tensor:
    """Return the attention [B, T, H, E] of queries and keys after their norms and rotations.

    `first_BT` is the first position that each sees, int32; `turns` are cos and sin [T, E].
    """
    return _SelfAttention.apply(qkv_BT3HE, q_norm_E, k_norm_E, first_BT, *turns, eps)  # pyright: ignore[reportReturnType]


class _Gated(torch.autograd.Function):
    """silu(gate) * up of both side by side [..., 2 I]."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        both = both.contiguous()
        output = both.new_empty(*both.shape[:-1], both.shape[-1] // 2)
        library("layers").layer_gated_forward(_half(both), address(both), *_rows(output), *threads(), address(output))
        ctx.save_for_backward(both)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (both,) = ctx.saved_tensors
        slope, both_slope = slope.contiguous(), torch.empty_like(both)
        library("layers").layer_gated_backward(
            _half(both), *map(address, (both, slope)), *_rows(slope), *threads(), address(both_slope)
        )
        return both_slope


def gated(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up [..., I] of gate and up side by side [..., 2 I]."""
    return _Gated.apply(gate_up)  # pyright: ignore[reportReturnType]
