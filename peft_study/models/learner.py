"""The learner: a base with whatever of it is trained, behind the two outputs that skills need."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import Qwen3ForCausalLM

from peft_study.igsm.text import BACK, END, RIGHT, WRONG
from peft_study.models.abstract import AbstractLearner
from peft_study.models.adapters import PeftModel, attach, embedding_adapter, load_adapter, read_table
from peft_study.models.attention import first_seen
from peft_study.models.base import load_model, load_tensors
from peft_study.models.config import MethodConfig
from peft_study.models.fused import Attention, backbone, marked_places, read_layers, seen_by

PROBE_FILE = "probe.safetensors"


def cast_parameters(module: nn.Module, dtype: torch.dtype) -> None:
    """Hold the parameters of `module` in `dtype`; buffers stay, for rotary frequencies must not be rounded."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)


class Learner(AbstractLearner):
    """Runs ids to logits at chosen positions only, since most positions have no loss.

    A position sees what stands before it in its document, which an [END] opens; without that the documents packed into
    a window distract each other: about a third more tokens for the same loss at this size (LOG.md).
    `correction` gives logits over the vocabulary; `detection` two, for [RIGHT] and [WRONG]: the rows of these
    tokens in the output embedding, or of a head of its own for a probe.
    """

    def __init__(
        self,
        model: Qwen3ForCausalLM,
        method: MethodConfig,
        word_ids: dict[str, int],
        seed: int,
        *,
        saved: Path | None = None,
    ) -> None:
        """Put `method` on `model`: fresh, or as `save` wrote it to the folder `saved`."""
        super().__init__()
        self.method = method
        self.end_id = word_ids[END]
        self.verdict_ids = [word_ids[RIGHT], word_ids[WRONG]]
        self.row_ids = [word_ids[BACK], *self.verdict_ids]
        """Words whose rows of the embeddings adapters train."""
        self.model = model
        self._adapted: list[PeftModel] = []
        self.probe: nn.Linear | None = None
        self.attention: Attention = "sdpa"
        """What computes attention."""
        self._compiled: Callable[..., Tensor] | None = None
        self._kept: dict[str, Tensor] = {}
        """What is not trained, in fp32, while the model computes in another type."""
        model.requires_grad_(method.name == "full")
        if method.name == "lora":
            self._adapted = [load_adapter(model, saved) if saved else attach(model, method, self.row_ids, seed)]
        elif method.name == "probe":
            if method.rank:
                self._adapted = [load_adapter(model, saved) if saved else embedding_adapter(model, method.rank, seed)]
            # Made empty: values that are replaced at once need no draw from the global generator.
            self.probe = nn.Linear(model.config.hidden_size, 2, device="meta").to_empty(device=model.device)
            nn.init.zeros_(self.probe.weight)
            nn.init.zeros_(self.probe.bias)
            if saved:
                self.probe.load_state_dict(load_tensors(saved / PROBE_FILE))
        elif method.name == "full" and saved:
            self.model.load_state_dict(load_model(saved).state_dict())

    @property
    def peft(self) -> PeftModel | None:
        """Peft's wrapper around the model, for saving and merging; kept out of the module tree, which it repeats."""
        return self._adapted[0] if self._adapted else None

    def forward(self, ids_BT: Tensor, where_BT: Tensor, *, verdict: bool) -> Tensor:
        """Return logits [N, V], or [N, 2] with `verdict`, at the N positions that `where_BT` marks."""
        inner: Any = self.model.model
        config, length = self.model.config, ids_BT.shape[1]
        layers = read_layers(self.model)
        first = {window: first_seen(ids_BT, self.end_id, window) for window in {layer.window for layer in layers}}
        x_BTD = functional.embedding(ids_BT, read_table(inner.embed_tokens), config.pad_token_id)
        cos, sin = inner.rotary_emb(x_BTD, torch.arange(length, device=ids_BT.device)[None])
        # What is only measured is not worth a compilation of its own; and a compiler wants shapes that stay.
        compiled = self._compiled if torch.is_grad_enabled() else None
        places, count = marked_places(where_BT)
        hidden = (compiled or backbone)(
            x_BTD,
            layers,
            inner.norm.weight,
            seen_by(first, self.attention, x_BTD.dtype),
            (cos[0], sin[0]),
            heads=config.num_attention_heads,
            eps=config.rms_norm_eps,
            attention=self.attention,
            training=self.training,
            places=None if compiled else places,
        )
        hidden, head_VD = hidden.flatten(0, 1)[places] if compiled else hidden, read_table(self.model.lm_head)
        if self.probe is not None and verdict:
            logits = self.probe(hidden)
        else:
            logits = functional.linear(hidden, head_VD[self.verdict_ids] if verdict else head_VD)
        return logits[:count]

    def place(self, device: torch.device) -> None:
        """Move to `device`."""
        self.to(device)

    def begin(self, dtype: torch.dtype, attention: str, *, compiled: bool) -> None:
        """Compute in `dtype` with `attention`, the layers compiled or not; a bf16 base is given back by `end`."""
        self._kept = {name: p.detach().clone() for name, p in self.named_parameters() if not p.requires_grad}
        cast_parameters(self, dtype)
        self.attention = cast(Attention, attention)
        if compiled:
            self.compile_layers()

    @torch.no_grad()
    def end(self) -> None:
        """Be in fp32 again, what was not trained as it was."""
        cast_parameters(self, torch.float32)
        for name, parameter in self.named_parameters():
            if name in self._kept:
                parameter.copy_(self._kept[name])
        self._kept = {}
        self.attention = "sdpa"

    def compile_layers(self) -> None:
        """Compile the layers."""
        # A second kind of adapter in this process would make the shapes of both dynamic, and slow; an eighth, eager.
        torch.compiler.reset()
        self._compiled = torch.compile(backbone, dynamic=False)

    def merged(self) -> Qwen3ForCausalLM:
        """Return a plain model with the adapter merged in, for generation; the learner is left as it is."""
        if self.peft is None:
            return self.model
        merged = copy.deepcopy(self.peft).merge_and_unload()
        assert isinstance(merged, Qwen3ForCausalLM)
        return merged

    @torch.no_grad()
    def detector(self) -> Qwen3ForCausalLM:
        """Return a plain model whose two outputs are the verdict's, right and wrong; the learner is left as it is."""
        model = copy.deepcopy(self.merged())
        if self.probe is not None:
            model.lm_head = copy.deepcopy(self.probe)
            return model
        rows = model.lm_head.weight[self.verdict_ids]
        model.lm_head = nn.Linear(rows.shape[1], len(rows), bias=False, device="meta").to_empty(device=rows.device)
        model.lm_head.weight.copy_(rows)
        return model

    def copy_fp32(self) -> Qwen3ForCausalLM:
        """Return a copy of the model in fp32 for generation while training goes on in another dtype."""
        return copy.deepcopy(self.model).float().eval()

    def save(self, folder: Path) -> None:
        """Write what was trained: the adapter in peft's format, the whole model, or the probe's head."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.peft is not None:
            self.peft.save_pretrained(str(folder), save_embedding_layers=False)
        elif self.method.name == "full":
            self.model.save_pretrained(folder)  # pyright: ignore[reportArgumentType]
        if self.probe is not None:
            save_file({name: p.detach() for name, p in self.probe.state_dict().items()}, folder / PROBE_FILE)
