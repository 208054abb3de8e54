"""The forward pass of a base, adapters included, in as few and as large matrix products as it takes.

The arithmetic is that of `transformers`' Qwen3 under peft's layers, which stay the form that parameters live and are
saved in (a test compares logits and gradients); what is saved is work. Queries, keys and values are one product, gate
and up another. A low-rank update is added to its matrix before the product, in half precision where its rank is high
alone, so that an adapter costs no further pass over the activations forward, and only products of its rank backward.

Shapes: B windows, T tokens, D model width, H heads, E head width, I inputs and O outputs of a matrix, R rank,
N positions, K slots.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Qwen3ForCausalLM

from peft_study.models import kernels
from peft_study.models.adapters import Linear, read_linear
from peft_study.models.attention import additive_mask, varlen_attention

Attention = Literal["varlen", "sdpa", "eager"]


class _Merged(torch.autograd.Function):
    """x (W + up^T down)^T, without ever making the gradient of the whole matrix where the rank is low.

    x [N, I], down [R, I] and up [R, O], or all three with a dimension of slots before; W [O, I] is one for all.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        matrix = weight + up.mT @ down
        ctx.save_for_backward(x, matrix, down, up)
        return functional.linear(x, matrix, bias) if x.ndim == 2 else _add(x @ matrix.mT, bias)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, matrix, down, up = ctx.saved_tensors
        before = slope @ matrix if ctx.needs_input_grad[0] else None
        rank, (outputs, inputs) = down.shape[-2], matrix.shape[-2:]
        # Products a token: with the update's two sides, or with the whole matrix as full fine-tuning has it.
        if 2 * rank * (inputs + outputs) < inputs * outputs:
            # Narrow products are up to ten times as slow in any other order and layout than these (LOG.md).
            return before, None, None, (slope @ up.mT).mT @ x, (x @ down.mT).mT @ slope
        whole = slope.mT @ x
        return before, None, None, up @ whole, down @ whole.mT


class _Beside(torch.autograd.Function):
    """x W^T + (x down^T) up as one product of (x, x down^T), for what is too small to be added to W in its precision.

    x [N, I], down [R, I], up [R, O], W [O, I].
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        both, matrix = torch.cat((x, x @ down.mT), dim=1), torch.cat((weight, up.mT), dim=1)
        ctx.save_for_backward(both, matrix, down)
        return functional.linear(both, matrix, bias)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        both, matrix, down = ctx.saved_tensors
        inputs = down.shape[1]
        both_slope = slope @ matrix
        low_slope = both_slope[:, inputs:]
        before = torch.addmm(both_slope[:, :inputs], low_slope, down) if ctx.needs_input_grad[0] else None
        return before, None, None, low_slope.mT @ both[:, :inputs], both[:, inputs:].mT @ slope


def _merges(dtype: torch.dtype, rank: int, weight_OI: Tensor) -> bool:
    """Whether an update of `rank` is added to its matrix.

    In half precision a small update would be lost in the last bit of the matrix, so there it stays beside it, unless
    that makes more products a token: 2 I O + 3 R (I + O) against the 3 I O of full fine-tuning. What is lost then is
    most of it in the first steps and a few hundredths later, at the rates of the study (LOG.md).
    """
    outputs, inputs = weight_OI.shape
    return dtype is torch.float32 or 3 * rank * (inputs + outputs) > inputs * outputs


def _add(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias


class Projection(NamedTuple):
    """One or more linear layers that read the same input, side by side.

    With slots (`training/bank.py`) the sides of the update have a first dimension K, and slot k is given the k-th part
    of the windows.
    """

    weight_OI: Tensor
    bias_O: Tensor | None
    downs: tuple[Tensor, ...]
    """Of each adapted part [R, I]."""
    up_RO: Tensor | None
    """The other sides, transposed and scaled, each in its rows and columns; None where nothing is adapted."""
    dropout: float

    def __call__(self, x_BTI: Tensor, *, training: bool) -> Tensor:
        """Return the outputs [B, T, O] of all parts."""
        if self.up_RO is None:
            return functional.linear(x_BTI, self.weight_OI, self.bias_O)
        inputs = x_BTI.shape[-1]
        x = x_BTI.reshape(-1, inputs) if self.up_RO.ndim == 2 else x_BTI.reshape(len(self.up_RO), -1, inputs)
        merges = _merges(x.dtype, self.up_RO.shape[-2], self.weight_OI)
        if not (training and self.dropout) and (merges or x.ndim == 2):
            apply: Any = _Merged.apply if merges else _Beside.apply
            y = apply(x, self.weight_OI, self.bias_O, torch.cat(self.downs, dim=-2), self.up_RO)
        else:
            low = [functional.dropout(x, self.dropout, training) @ down.mT for down in self.downs]
            y = functional.linear(x, self.weight_OI, self.bias_O) + torch.cat(low, dim=-1) @ self.up_RO
        return y.view(*x_BTI.shape[:-1], y.shape[-1])


def side_by_side(parts: Sequence[Linear]) -> Projection:
    """Return `parts` as one projection."""
    biases = [part.bias_O for part in parts if part.bias_O is not None]
    assert len(biases) in (0, len(parts)), "parts that stand side by side have all a bias or none"
    bias = torch.cat(biases) if biases else None
    outputs, before = sum(len(part.weight_OI) for part in parts), 0
    downs: list[Tensor] = []
    ups: list[Tensor] = []
    for part in parts:
        if part.down_RI is not None and part.up_OR is not None:
            downs.append(part.down_RI)
            after = outputs - before - len(part.weight_OI)
            ups.append(functional.pad(part.up_OR.mT * part.scale, (before, after)))
        before += len(part.weight_OI)
    return Projection(
        torch.cat([part.weight_OI for part in parts]) if len(parts) > 1 else parts[0].weight_OI,
        bias,
        tuple(downs),
        torch.cat(ups, dim=-2) if ups else None,
        max((part.dropout for part in parts), default=0.0),
    )


class Layer(NamedTuple):
    """The weights of one layer."""

    attention_norm: Tensor
    qkv: Projection
    q_norm: Tensor
    k_norm: Tensor
    out: Projection
    mlp_norm: Tensor
    gate_up: Projection
    down: Projection
    window: int
    """Tokens that a position sees, itself included; 0 for its whole document."""


def read_layers(model: Qwen3ForCausalLM, read: Callable[[nn.Module], Linear] = read_linear) -> list[Layer]:
    """Return the layers of a base; `read` says what stands for each linear layer, by default itself, wrapped or not."""
    config = model.config
    layers: list[Layer] = []
    for layer, kind in zip(model.model.layers, config.layer_types or [], strict=True):
        parts: Any = layer  # transformers' stubs take a layer's parts for tensors
        attention, mlp = parts.self_attn, parts.mlp
        layers.append(
            Layer(
                parts.input_layernorm.weight,
                side_by_side([read(each) for each in (attention.q_proj, attention.k_proj, attention.v_proj)]),
                attention.q_norm.weight,
                attention.k_norm.weight,
                side_by_side([read(attention.o_proj)]),
                parts.post_attention_layernorm.weight,
                side_by_side([read(mlp.gate_proj), read(mlp.up_proj)]),
                side_by_side([read(mlp.down_proj)]),
                (config.sliding_window or 0) if kind == "sliding_attention" else 0,
            )
        )
    return layers


def attend(q_BTHE: Tensor, k_BTHE: Tensor, v_BTHE: Tensor, seen: Tensor, attention: Attention) -> Tensor:
    """Return [B, T, H, E]; `seen` is the first position seen [B, T] for the kernel, else a mask [B, 1, T, T].

    The kernel computes in fp32 whatever it is given, but for its weights in the tiles of AMX.
    """
    q, k, v = q_BTHE.transpose(1, 2), k_BTHE.transpose(1, 2), v_BTHE.transpose(1, 2)
    if attention == "varlen":
        return varlen_attention(q, k, v, seen, q.shape[-1] ** -0.5)
    if attention == "sdpa":
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2)
    logits = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5 + seen
    return (functional.softmax(logits.float(), dim=-1).to(q.dtype) @ v).transpose(1, 2)


class Formulas:
    """What a layer does between its products, as PyTorch writes it: for any device, and for a compiler to fuse.

    `kernels` has the same four by the same names.
    """

    def __init__(self, attention: Attention) -> None:
        """Take the attention with which `self_attention` computes."""
        self.attention: Attention = attention

    @staticmethod
    def norm(x_BTD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """Return the RMS norm of each row."""
        return functional.rms_norm(x_BTD, x_BTD.shape[-1:], weight_D, eps)

    @staticmethod
    def add_norm(x_BTD: Tensor, update_BTD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Return x + update, and the RMS norm of each of its rows."""
        x_BTD = x_BTD + update_BTD
        return x_BTD, Formulas.norm(x_BTD, weight_D, eps)

    def self_attention(
        self,
        qkv_BT3HE: Tensor,
        q_norm_E: Tensor,
        k_norm_E: Tensor,
        seen: Tensor,
        turns: tuple[Tensor, Tensor],
        eps: float,
    ) -> Tensor:
        """Return the attention [B, T, H, E] of queries and keys after their norms and rotations."""
        q, k, v = qkv_BT3HE.unbind(2)
        cos, sin = (turn_TE[:, None] for turn_TE in turns)
        q, k = (self.norm(x, weight, eps) for x, weight in ((q, q_norm_E), (k, k_norm_E)))
        half = q.shape[-1] // 2
        q, k = (x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin for x in (q, k))
        return attend(q, k, v, seen, self.attention)

    @staticmethod
    def gated(gate_up: Tensor) -> Tensor:
        """Return silu(gate) * up [..., I] of gate and up side by side [..., 2 I]."""
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up


def backbone(
    x_BTD: Tensor,
    layers: list[Layer],
    norm: Tensor,
    seen: dict[int, Tensor],
    turns: tuple[Tensor, Tensor],
    *,
    heads: int,
    eps: float,
    attention: Attention,
    training: bool,
    places: Tensor | None = None,
) -> Tensor:
    """Return the hidden states [B, T, D] that embeddings [B, T, D] become, or [P, D] of P `places` in B times T.

    `seen` says by window of a layer what its positions see, `turns` are cos and sin of the rotation [T, E]. No position
    reads another after the last attention, so what comes then is computed for those places alone.
    """
    # A compiler fuses formulas, and cannot look into a kernel.
    by_kernels = attention == "varlen" and not torch.compiler.is_compiling()
    do: Any = kernels if by_kernels else Formulas(attention)
    x, shape = x_BTD, (*x_BTD.shape[:2], 3, heads, -1)
    y = do.norm(x, layers[0].attention_norm, eps)
    for layer, next_norm in zip(layers, [*(layer.attention_norm for layer in layers[1:]), norm], strict=True):
        qkv = layer.qkv(y, training=training).view(shape)
        seeing = do.self_attention(qkv, layer.q_norm, layer.k_norm, seen[layer.window], turns, eps).flatten(2)
        if places is not None and layer is layers[-1]:
            x, seeing = x.flatten(0, 1)[places], seeing.flatten(0, 1)[places]
        x, y = do.add_norm(x, layer.out(seeing, training=training), layer.mlp_norm, eps)
        between = do.gated(layer.gate_up(y, training=training))
        x, y = do.add_norm(x, layer.down(between, training=training), next_norm, eps)
    return y


_WHOLE = 64


def marked_places(where_BT: Tensor) -> tuple[Tensor, int]:
    """Return where `where_BT` marks positions of B times T, the first of all behind them to a multiple of 64; and N.

    What multiplies matrices is made anew for every number of rows, which takes a CPU as long as many a product; and
    hardly two steps have loss at as many positions.
    """
    places_N = where_BT.flatten().nonzero()[:, 0]
    return functional.pad(places_N, (0, -len(places_N) % _WHOLE)), len(places_N)


def seen_by(first_BT: dict[int, Tensor], attention: Attention, dtype: torch.dtype) -> dict[int, Tensor]:
    """Return what `attention` takes for the first positions seen [B, T], by window of a layer."""
    if attention == "varlen":
        return {window: first.int() for window, first in first_BT.items()}
    return {window: additive_mask(first, dtype) for window, first in first_BT.items()}
