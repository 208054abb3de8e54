"""Batched generation with a static key-value cache, for Qwen3 checkpoints.

Rows are padded on the right and carry their own length, so that a causal mask is enough, a finished row is
dropped without a second prefill, and going back (`rewind`) is only a smaller length. The arithmetic is that of
`transformers`' Qwen3, so greedy output in fp32 is the same token for token (a test holds it).

Shapes: B rows, S cached tokens, H heads, E head width, D model width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Qwen3ForCausalLM


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return functional.rms_norm(x, (x.shape[-1],), weight, eps)


def _rotate(x_BHTE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x_BHTE.shape[-1] // 2
    turned = torch.cat((-x_BHTE[..., half:], x_BHTE[..., :half]), dim=-1)
    return x_BHTE * cos + turned * sin


_ROOM = 64
"""Tokens by which the cache grows."""


def _longer(cached_BHSE: Tensor) -> Tensor:
    return functional.pad(cached_BHSE, (0, 0, 0, _ROOM))


class _Layer(NamedTuple):
    """The weights of one layer, queries, keys and values in one matrix, gate and up in one."""

    attention_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor
    k_norm: Tensor
    out: Tensor
    out_bias: Tensor | None
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor

    @classmethod
    def of(cls, layer: Any) -> "_Layer":
        """Return the weights of a layer of transformers' Qwen3, whose stubs take a layer's parts for tensors."""
        attention, mlp = layer.self_attn, layer.mlp
        qkv = attention.q_proj, attention.k_proj, attention.v_proj
        biased = attention.q_proj.bias is not None
        return cls(
            attention_norm=layer.input_layernorm.weight.detach(),
            qkv=torch.cat([linear.weight.detach() for linear in qkv]),
            qkv_bias=torch.cat([linear.bias.detach() for linear in qkv]) if biased else None,
            q_norm=attention.q_norm.weight.detach(),
            k_norm=attention.k_norm.weight.detach(),
            out=attention.o_proj.weight.detach(),
            out_bias=attention.o_proj.bias.detach() if biased else None,
            mlp_norm=layer.post_attention_layernorm.weight.detach(),
            gate_up=torch.cat([mlp.gate_proj.weight.detach(), mlp.up_proj.weight.detach()]),
            down=mlp.down_proj.weight.detach(),
        )


class Decoder:
    """A batch of sequences in progress. `logits` holds, for each row, what follows its last token."""

    def __init__(self, model: Qwen3ForCausalLM, max_length: int) -> None:
        config = model.config
        self.model = model
        self.num_heads = config.num_attention_heads
        self.eps = config.rms_norm_eps
        self.max_length = max_length
        self.embeddings = model.model.embed_tokens.weight.detach()
        self.norm = model.model.norm.weight.detach()
        self.head = model.lm_head.weight.detach()
        self.head_bias = None if model.lm_head.bias is None else model.lm_head.bias.detach()
        self.layers = [_Layer.of(layer) for layer in model.model.layers]
        kinds: list[str] = config.layer_types or []
        local: int = config.sliding_window or max_length
        self.windows = [local if kind == "sliding_attention" else max_length for kind in kinds]
        """Tokens that each layer sees, the last included."""
        positions = torch.arange(max_length, device=self.head.device)[None]
        self.cos, self.sin = (table[0] for table in model.model.rotary_emb(self.embeddings[:1], positions))
        self.cache: list[tuple[Tensor, Tensor]] = []
        self.lengths = torch.zeros(0, dtype=torch.long)
        self.logits = torch.zeros(0)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Have PyTorch set up for what is chosen between steps."""
        yield

    def prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        """Start a batch from `prompts`, each a sequence of token ids."""
        self.logits = self.read(prompts, [[len(prompt) - 1] for prompt in prompts])

    @torch.inference_mode()
    def read(self, prompts: Sequence[Sequence[int]], places: Sequence[Sequence[int]]) -> Tensor:
        """Read `prompts` from their first tokens on; return the logits [N, V] of what follows those at `places`.

        N counts the places of all prompts, in their order.
        """
        device = self.head.device
        self.lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        longest = int(self.lengths.max())
        assert longest <= self.max_length, f"a prompt of {longest} tokens exceeds the {self.max_length} of the cache"
        ids = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        width = self.head.shape[1] // self.num_heads
        # What is reserved is copied whenever rows are dropped, so it grows with what is used.
        shape = (len(prompts), self.num_heads, min(longest + _ROOM, self.max_length), width)
        self.cache = [(self.head.new_zeros(shape), self.head.new_zeros(shape)) for _ in self.layers]
        x = self.embeddings[ids]
        causal = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
        for layer, (keys, values), window in zip(self.layers, self.cache, self.windows, strict=True):
            q, k, v = self._project(x, layer, self.cos[:longest], self.sin[:longest])
            keys[:, :, :longest], values[:, :, :longest] = k, v
            if window < longest:
                attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=causal.triu(1 - window))
            else:
                attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = self._finish(x, attended, layer)
        rows = [row for row, mine in enumerate(places) for _ in mine]
        return self._logits_of(x[rows, [place for mine in places for place in mine]])

    @torch.inference_mode()
    def step(self, tokens_B: Tensor) -> None:
        """Append one token to each row and compute what follows it."""
        rows = torch.arange(len(tokens_B), device=tokens_B.device)
        cos, sin = self.cos[self.lengths][:, None, None], self.sin[self.lengths][:, None, None]
        longest = int(self.lengths.max()) + 1
        if longest > self.cache[0][0].shape[2]:
            self.cache = [(_longer(keys), _longer(values)) for keys, values in self.cache]
        behind_BS = self.lengths[:, None] - torch.arange(longest, device=tokens_B.device)
        x = self.embeddings[tokens_B][:, None]
        for layer, (keys, values), window in zip(self.layers, self.cache, self.windows, strict=True):
            seen_BS = (behind_BS >= 0) & (behind_BS < window)
            q, k, v = self._project(x, layer, cos, sin)
            keys[rows, :, self.lengths], values[rows, :, self.lengths] = k[:, :, 0], v[:, :, 0]
            attended = functional.scaled_dot_product_attention(
                q, keys[:, :, :longest], values[:, :, :longest], attn_mask=seen_BS[:, None, None]
            )
            x = self._finish(x, attended, layer)
        self.lengths = self.lengths + 1
        self.logits = self._logits_of(x[:, 0])

    def keep(self, rows: Tensor) -> None:
        """Go on with `rows` (indices) alone; one that stands there twice forks."""
        self.cache = [(keys[rows], values[rows]) for keys, values in self.cache]
        self.lengths, self.logits = self.lengths[rows], self.logits[rows]

    @torch.inference_mode()
    def rewind(self, row: int, length: int, logits: Tensor) -> None:
        """Take `row` back to its first `length` tokens, where `logits` followed."""
        self.lengths[row] = length
        self.logits[row] = logits

    def _logits_of(self, x_ND: Tensor) -> Tensor:
        return functional.linear(_rms_norm(x_ND, self.norm, self.eps), self.head, self.head_bias)

    def _project(self, x: Tensor, layer: _Layer, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = functional.linear(_rms_norm(x, layer.attention_norm, self.eps), layer.qkv, layer.qkv_bias)
        q, k, v = qkv.view(*x.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k = _rms_norm(q, layer.q_norm, self.eps), _rms_norm(k, layer.k_norm, self.eps)
        return _rotate(q, cos, sin), _rotate(k, cos, sin), v

    def _finish(self, x: Tensor, attended_BHTE: Tensor, layer: _Layer) -> Tensor:
        x = x + functional.linear(attended_BHTE.transpose(1, 2).reshape(x.shape), layer.out, layer.out_bias)
        gate, up = functional.linear(_rms_norm(x, layer.mlp_norm, self.eps), layer.gate_up).chunk(2, dim=-1)
        return x + functional.linear(functional.silu(gate) * up, layer.down)
