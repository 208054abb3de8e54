"""The decoder whose arithmetic is native/decode.cpp, in fp32 on a CPU.

Shapes: B rows, P pages of a row's cache, V words.
"""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Qwen3ForCausalLM

from peft_study.decoding.decoder import Decoder
from peft_study.errors import KernelError
from peft_study.native import address, library

_TOGETHER = 128
"""Rows of a prompt that the kernel takes through the layers together, about: few enough for the processor's cache."""


class Pages:
    """A cache in pages of a few positions, all layers in one. Rows that fork share pages until one of them writes."""

    def __init__(self, size: int, num_floats: int) -> None:
        self.size = size
        """Positions that a page holds."""
        self.num_floats = num_floats
        self.chunks: list[Tensor] = []
        self.places = torch.zeros(0, dtype=torch.long)
        """Where each page lies in memory."""
        self.holders: list[int] = []
        """How many rows hold each page."""
        self.free: list[int] = []
        self.table_BP = torch.zeros(0, 0, dtype=torch.long)
        """The pages of each row in order, -1 for none."""

    def start(self, lengths_B: Tensor) -> None:
        """Begin anew, with room for the first `lengths_B` positions of each row."""
        self.table_BP = torch.zeros(len(lengths_B), 0, dtype=torch.long)
        self._count_holders()
        num_B = -(-lengths_B // self.size)
        rows = torch.arange(len(lengths_B)).repeat_interleave(num_B)
        self._own(rows, torch.cat([torch.arange(num) for num in num_B.tolist()]))

    def make_room(self, positions_B: Tensor) -> None:
        """Give each row a page of its own to write its position into, with what the page held that it shared."""
        self._own(torch.arange(len(positions_B)), positions_B // self.size)

    def keep(self, rows: Tensor) -> None:
        """Go on with `rows` alone; one that stands there twice forks."""
        self.table_BP = self.table_BP[rows]
        self._count_holders()

    def _count_holders(self) -> None:
        holders = self.table_BP[self.table_BP >= 0].bincount(minlength=len(self.places))
        self.holders = holders.tolist()
        self.free = (holders == 0).nonzero()[:, 0].tolist()

    def _own(self, rows: Tensor, columns: Tensor) -> None:
        more = int(columns.max()) + 1 - self.table_BP.shape[1]
        if more > 0:
            self.table_BP = functional.pad(self.table_BP, (0, more), value=-1)
        held = self.table_BP[rows, columns].tolist()
        changed: list[int] = []
        taken: list[int] = []
        for at, page in enumerate(held):
            if page >= 0 and self.holders[page] == 1:
                continue
            new = self._take()
            if page >= 0:
                self.holders[page] -= 1
                ctypes.memmove(int(self.places[new]), int(self.places[page]), 4 * self.num_floats)
            changed.append(at)
            taken.append(new)
        if taken:
            self.table_BP[rows[changed], columns[changed]] = torch.tensor(taken)

    def _take(self) -> int:
        if not self.free:
            known = len(self.places)
            # Memory that is never written takes no room, so that half of it too many is no harm.
            self.chunks.append(torch.empty(max(64, known), self.num_floats))
            start, step = self.chunks[-1].data_ptr(), 4 * self.num_floats
            self.places = torch.cat((self.places, start + step * torch.arange(len(self.chunks[-1]))))
            self.holders += [0] * len(self.chunks[-1])
            self.free = list(range(len(self.places) - 1, known - 1, -1))
        page = self.free.pop()
        self.holders[page] = 1
        return page


class CompiledDecoder(Decoder):
    """A decoder that reads and writes its cache in pages, so that no row that grows, ends or forks is copied.

    Raises KernelError for a model that the kernel is not made for, or without a compiler.
    """

    def __init__(self, model: Qwen3ForCausalLM, max_length: int) -> None:
        config, head = model.config, model.lm_head.weight
        sizes = (config.head_dim, config.hidden_size, config.intermediate_size)
        if head.device.type != "cpu" or head.dtype != torch.float32 or any(size % 16 for size in sizes):
            raise KernelError(
                "the kernel decodes in fp32 on a CPU, with widths that are multiples of 16, but this model is "
                f"{head.dtype} on {head.device.type}, with heads of {sizes[0]}, width {sizes[1]}, MLP {sizes[2]}"
            )
        self.kernel = library("decode", HEAD_WIDTH=config.head_dim)
        self.kernel.packed_size.restype = self.kernel.page_size.restype = ctypes.c_long
        super().__init__(model, max_length)
        packed = [
            layer._replace(**{name: self._pack(getattr(layer, name)) for name in ("qkv", "out", "gate_up", "down")})
            for layer in self.layers
        ]
        self.layers = packed
        places = [None if tensor is None else tensor.data_ptr() for layer in packed for tensor in layer]
        self.layer_array = (ctypes.c_void_p * len(places))(*places)
        self.packed_head = self._pack(self.head)
        self.window_array = (ctypes.c_long * len(packed))(*self.windows)
        self.sizes = (len(packed), config.hidden_size, self.num_heads, config.intermediate_size, len(self.head))
        self.cos, self.sin = self.cos.contiguous(), self.sin.contiguous()
        self.threads = torch.get_num_threads()
        size = self.kernel.page_size()
        self.pages = Pages(size, 2 * len(packed) * self.num_heads * config.head_dim * size)

    def _pack(self, matrix: Tensor) -> Tensor:
        outputs, inputs = (ctypes.c_long(size) for size in matrix.shape)
        packed, matrix = torch.empty(self.kernel.packed_size(outputs, inputs)), matrix.contiguous()
        self.kernel.pack(address(matrix), outputs, inputs, address(packed))
        return packed

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Keep PyTorch to one thread: its others would go on spinning for work on the cores that the kernel needs."""
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(self.threads)

    def read(self, prompts: Sequence[Sequence[int]], places: Sequence[Sequence[int]]) -> Tensor:
        """Read `prompts` from their first tokens on; return the logits [N, V] of what follows those at `places`.

        N counts the places of all prompts, in their order.
        """
        lengths = [len(prompt) for prompt in prompts]
        assert max(lengths) <= self.max_length, f"a prompt has {max(lengths)} tokens, the cache {self.max_length}"
        self.lengths = torch.tensor(lengths)
        self.pages.start(self.lengths)
        rows, ends = torch.arange(len(prompts)), self.lengths.cumsum(0)
        counts = torch.tensor([len(mine) for mine in places])
        starts = (ends - self.lengths).repeat_interleave(counts)
        chosen = starts + torch.tensor([place for mine in places for place in mine], dtype=torch.long)
        wanted = torch.full((sum(lengths),), -1)
        wanted[chosen] = torch.arange(len(chosen))
        bounds = [0]
        for end in ends.tolist():
            if end - bounds[-1] >= _TOGETHER or end == len(wanted):
                bounds.append(end)
        logits = torch.empty(len(chosen), len(self.head))
        self._run(
            torch.tensor([token for prompt in prompts for token in prompt]),
            rows.repeat_interleave(self.lengths),
            torch.cat([torch.arange(length) for length in lengths]),
            wanted,
            bounds,
            logits,
        )
        return logits

    def step(self, tokens_B: Tensor) -> None:
        """Append one token to each row and compute what follows it."""
        self.pages.make_room(self.lengths)
        count = len(tokens_B)
        share, rows = -(-count // self.threads), torch.arange(count)
        self.logits = torch.empty(count, len(self.head))
        self._run(tokens_B, rows, self.lengths, rows, [*range(0, count, share), count], self.logits)
        self.lengths = self.lengths + 1

    def keep(self, rows: Tensor) -> None:
        """Go on with `rows` (indices) alone; one that stands there twice forks."""
        self.pages.keep(rows)
        self.lengths, self.logits = self.lengths[rows], self.logits[rows]

    def _run(
        self, ids: Tensor, rows: Tensor, positions: Tensor, wanted: Tensor, bounds: list[int], logits: Tensor
    ) -> None:
        """Take tokens through the model, each of a row; `wanted` is its row of `logits`, -1 for none."""
        with torch.inference_mode():
            x = self.embeddings[ids]
        table_BP = self.pages.table_BP.contiguous()
        self.kernel.decode(
            self.layer_array, self.window_array, (ctypes.c_long * 6)(*self.sizes, table_BP.shape[1]),
            *map(address, (self.cos, self.sin, self.norm, self.packed_head, self.head_bias)), ctypes.c_float(self.eps),
            *map(address, (table_BP, self.pages.places, x, rows, positions, wanted)),
            (ctypes.c_long * len(bounds))(*bounds), ctypes.c_long(len(bounds) - 1), self.threads,
            address(logits),
        )  # fmt: skip
