"""Batched generation with a static key-value cache, for Qwen3 checkpoints.

Rows are padded on the right and carry their own length, so that a causal mask is enough, a finished row is
dropped without a second prefill, and going back (`rewind`) is only a smaller length. The arithmetic is that of
`transformers`' Qwen3, so greedy output in fp32 is the same token for token (a test holds it).

Shapes: B rows, S cached tokens, H heads, E head width, D model width.
"""

import ctypes
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Qwen3ForCausalLM

from peft_study.errors import ConfigError, KernelError
from peft_study.native import library


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

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        """Start a batch from `prompts`, each a sequence of token ids."""
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
        last = x[torch.arange(len(prompts), device=device), self.lengths - 1]
        self.logits = _rms_norm(last, self.norm, self.eps) @ self.head.T

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
        self.logits = _rms_norm(x[:, 0], self.norm, self.eps) @ self.head.T

    def keep(self, rows: Tensor) -> None:
        """Go on with `rows` (indices) alone; one that stands there twice forks."""
        self.cache = [(keys[rows], values[rows]) for keys, values in self.cache]
        self.lengths, self.logits = self.lengths[rows], self.logits[rows]

    @torch.inference_mode()
    def rewind(self, row: int, length: int, logits: Tensor) -> None:
        """Take `row` back to its first `length` tokens, where `logits` followed."""
        self.lengths[row] = length
        self.logits[row] = logits

    def _project(self, x: Tensor, layer: _Layer, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = functional.linear(_rms_norm(x, layer.attention_norm, self.eps), layer.qkv, layer.qkv_bias)
        q, k, v = qkv.view(*x.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k = _rms_norm(q, layer.q_norm, self.eps), _rms_norm(k, layer.k_norm, self.eps)
        return _rotate(q, cos, sin), _rotate(k, cos, sin), v

    def _finish(self, x: Tensor, attended_BHTE: Tensor, layer: _Layer) -> Tensor:
        x = x + functional.linear(attended_BHTE.transpose(1, 2).reshape(x.shape), layer.out, layer.out_bias)
        gate, up = functional.linear(_rms_norm(x, layer.mlp_norm, self.eps), layer.gate_up).chunk(2, dim=-1)
        return x + functional.linear(functional.silu(gate) * up, layer.down)


_TOGETHER = 128
"""Rows that the kernel takes through the layers together, about: few enough for the processor's cache."""


class CompiledDecoder(Decoder):
    """A decoder whose arithmetic is native/decode.cpp, in fp32 on a CPU.

    Each row has a slot of the cache; a row that ends leaves its slot, and is not copied away. Raises KernelError for
    a model that the kernel is not made for, or without a compiler.
    """

    def __init__(self, model: Qwen3ForCausalLM, max_length: int) -> None:
        super().__init__(model, max_length)
        config, head = model.config, self.head
        self.width = config.head_dim
        sizes = (self.width, config.hidden_size, config.intermediate_size)
        if head.device.type != "cpu" or head.dtype != torch.float32 or any(size % 16 for size in sizes):
            raise KernelError(
                "the kernel decodes in fp32 on a CPU, with widths that are multiples of 16, but this model is "
                f"{head.dtype} on {head.device.type}, with heads of {self.width}, width {sizes[1]}, MLP {sizes[2]}"
            )
        self.kernel = library("decode", HEAD_WIDTH=self.width)
        self.kernel.packed_size.restype = self.kernel.stretch.restype = ctypes.c_long
        self.packed = [
            layer._replace(**{name: self._pack(getattr(layer, name)) for name in ("qkv", "out", "gate_up", "down")})
            for layer in self.layers
        ]
        self.packed_head = self._pack(head)
        self.window_array = (ctypes.c_long * len(self.packed))(*self.windows)
        self.cos, self.sin = self.cos.contiguous(), self.sin.contiguous()
        self.slots = torch.zeros(0, dtype=torch.long)

    def _pack(self, matrix: Tensor) -> Tensor:
        outputs, inputs = (ctypes.c_long(size) for size in matrix.shape)
        packed = torch.empty(self.kernel.packed_size(outputs, inputs))
        self.kernel.pack(_at(matrix.contiguous()), outputs, inputs, _at(packed))
        return packed

    def prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        """Start a batch from `prompts`, each a sequence of token ids."""
        lengths = [len(prompt) for prompt in prompts]
        assert max(lengths) <= self.max_length, f"a prompt has {max(lengths)} tokens, the cache {self.max_length}"
        stretch, width = self.kernel.stretch(), self.width
        blocks, rows = -(-(max(lengths) + _ROOM) // stretch), (len(prompts), self.num_heads)
        self.cache = [
            (torch.zeros(*rows, blocks, width, stretch), torch.zeros(*rows, blocks * stretch, width))
            for _ in self.packed
        ]
        self._point()
        self.slots, self.lengths = torch.arange(len(prompts)), torch.tensor(lengths)
        wanted = torch.full((sum(lengths),), -1)
        wanted[self.lengths.cumsum(0) - 1] = self.slots
        bounds = [0]
        for end in self.lengths.cumsum(0).tolist():
            if end - bounds[-1] >= _TOGETHER or end == len(wanted):
                bounds.append(end)
        self.logits = torch.empty(len(prompts), len(self.head))
        self._run(
            torch.tensor([token for prompt in prompts for token in prompt]),
            self.slots.repeat_interleave(self.lengths),
            torch.cat([torch.arange(length) for length in lengths]),
            wanted,
            bounds,
        )

    def step(self, tokens_B: Tensor) -> None:
        """Append one token to each row and compute what follows it."""
        if int(self.lengths.max()) >= self.cache[0][1].shape[2]:
            stretch = self.kernel.stretch()
            blocks = -(-_ROOM // stretch)
            self.cache = [
                (functional.pad(keys, (0, 0, 0, 0, 0, blocks)), functional.pad(values, (0, 0, 0, blocks * stretch)))
                for keys, values in self.cache
            ]
            self._point()
        rows = len(tokens_B)
        share = -(-rows // torch.get_num_threads())
        self.logits = torch.empty(rows, len(self.head))
        self._run(tokens_B, self.slots, self.lengths, torch.arange(rows), [*range(0, rows, share), rows])
        self.lengths = self.lengths + 1

    def keep(self, rows: Tensor) -> None:
        """Go on with `rows` (indices) alone; one that stands there twice forks."""
        wanted = self.slots[rows]
        self.lengths, self.logits = self.lengths[rows], self.logits[rows]
        taken: set[int] = set()
        twice = [at for at, slot in enumerate(wanted.tolist()) if slot in taken or taken.add(slot)]
        if not twice:
            self.slots = wanted
            return
        free = [slot for slot in range(len(self.cache[0][0])) if slot not in taken]
        if len(free) < len(twice):
            self.cache = [(keys[wanted], values[wanted]) for keys, values in self.cache]
            self.slots = torch.arange(len(rows))
            self._point()
            return
        to, used = torch.tensor(free[: len(twice)]), int(self.lengths.max())
        blocks = -(-used // self.kernel.stretch())
        for keys, values in self.cache:
            keys[to, :, :blocks] = keys[wanted[twice], :, :blocks]
            values[to, :, :used] = values[wanted[twice], :, :used]
        wanted[twice] = to
        self.slots = wanted

    def _point(self) -> None:
        """Tell the kernel where weights and cache lie."""
        places = [
            None if tensor is None else tensor.data_ptr()
            for layer, cached in zip(self.packed, self.cache, strict=True)
            for tensor in (*layer, *cached)
        ]
        self.layer_array = (ctypes.c_void_p * len(places))(*places)
        config = self.model.config
        shape = (len(self.packed), config.hidden_size, self.num_heads, config.intermediate_size, len(self.head))
        self.size_array = (ctypes.c_long * 6)(*shape, self.cache[0][1].shape[2])

    def _run(self, ids: Tensor, slots: Tensor, positions: Tensor, wanted: Tensor, bounds: list[int]) -> None:
        """Take tokens [rows] through the model; `wanted` says where the logits of each go, -1 for nowhere."""
        with torch.inference_mode():
            x = self.embeddings[ids]
        self.kernel.decode(
            self.layer_array, self.window_array, self.size_array, _at(self.cos), _at(self.sin), _at(self.norm),
            _at(self.packed_head), ctypes.c_float(self.eps), _at(x), _at(slots), _at(positions), _at(wanted),
            (ctypes.c_long * len(bounds))(*bounds), ctypes.c_long(len(bounds) - 1), torch.get_num_threads(),
            _at(self.logits),
        )  # fmt: skip


def _at(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def make_decoder(model: Qwen3ForCausalLM, max_length: int) -> Decoder:
    """Return the quickest decoder there is for `model`: outputs are the same, token for token but for rounding."""
    try:
        return CompiledDecoder(model, max_length)
    except KernelError as error:
        if model.lm_head.weight.device.type == "cpu":
            logging.getLogger(__name__).info("decoding with PyTorch: %s", error)
        return Decoder(model, max_length)


def greedy(logits_BV: Tensor) -> Tensor:
    """Return the likeliest token of each row."""
    return logits_BV.argmax(-1)


def sampled(temperature: float, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Return a choice that draws the token of each row from its distribution at `temperature`; 0 is greedy.

    What is drawn depends on which rows share a batch.
    """
    if temperature < 0:
        raise ConfigError(f"temperature must be at least 0, but got {temperature}; set 0 for the likeliest token")

    def draw(logits_BV: Tensor) -> Tensor:
        weights_BV = (logits_BV.float() / temperature).softmax(-1)
        return torch.multinomial(weights_BV, 1, generator=generator)[:, 0]

    return draw if temperature else greedy


def by_length(lengths: list[int], batch_size: int) -> Iterator[list[int]]:
    """Yield indices in batches of like length."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def generate(
    model: Qwen3ForCausalLM,
    prompts: Sequence[Sequence[int]],
    *,
    end_id: int,
    max_length: int,
    batch_size: int = 256,
    choose: Callable[[Tensor], Tensor] = greedy,
) -> list[list[int]]:
    """Return the tokens generated after each prompt, up to and with `end_id`, prompt and output <= `max_length`.

    A sequence that does not end with `end_id` was cut by the limit.
    """
    outputs: list[list[int]] = [[] for _ in prompts]
    for batch in by_length([len(prompt) for prompt in prompts], batch_size):
        decoder = make_decoder(model, max_length)
        decoder.prefill([prompts[i] for i in batch])
        alive = batch
        while alive:
            tokens = choose(decoder.logits)
            for i, token in zip(alive, tokens.tolist(), strict=True):
                outputs[i].append(token)
            going = (tokens != end_id) & (decoder.lengths + 1 < max_length)
            if not bool(going.all()):
                rows = going.nonzero()[:, 0]
                decoder.keep(rows)
                tokens = tokens[rows]
                alive = [alive[row] for row in rows.tolist()]
            if alive:
                decoder.step(tokens)
    return outputs
