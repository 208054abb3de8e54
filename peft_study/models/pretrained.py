"""A learner on any causal language model: full fine-tuning, adapters and probes, over a quantised base or a plain one.

Shapes: B windows, T tokens of a window, N positions that are asked for, V words.
"""

import inspect
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from peft_study.errors import ConfigError
from peft_study.igsm.text import RIGHT, WRONG
from peft_study.models.abstract import AbstractLearner
from peft_study.models.adapters import PeftModel, attach, embedding_adapter, load_adapter, merged_copy
from peft_study.models.base import load_tensors
from peft_study.models.config import MethodConfig, PretrainedConfig
from peft_study.models.hub import add_tokens, load_pretrained, load_tokenizer
from peft_study.models.learner import PROBE_FILE
from peft_study.models.quantize import cache_dequantized, quantized_layers, unquantized
from peft_study.models.targets import match, towers
from peft_study.rng import derive_seed


def verdict_tokens(tokenizer: Any, texts: tuple[str, str]) -> list[int]:
    """Return the tokens that stand for right and wrong: the first ones of `texts`, or of what stands in for them.

    Raises ConfigError where the two would be one.
    """
    vocabulary = tokenizer.get_vocab()
    choices = [texts] if texts[0] else [(" right", " wrong"), ("right", "wrong")]
    if not texts[0] and RIGHT in vocabulary and WRONG in vocabulary:
        return [vocabulary[RIGHT], vocabulary[WRONG]]
    for pair in choices:
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"][:1] for text in pair]
        if ids[0] and ids[1] and ids[0] != ids[1]:
            return [ids[0][0], ids[1][0]]
    raise ConfigError(
        f"pretrained.verdicts must be texts that begin with different tokens, but {choices[-1]} do not; set them to "
        f'other texts, or pretrained.new_tokens and pretrained.verdicts to ["{RIGHT}", "{WRONG}"]'
    )


class PretrainedLearner(AbstractLearner):
    """Runs ids to logits by the model's own forward pass, so that its soft caps, scales and masks hold.

    Documents in a window are kept apart by positions that restart, where the architecture can (`isolates`).
    """

    def __init__(self, config: PretrainedConfig, method: MethodConfig, seed: int, *, saved: Path | None = None) -> None:
        """Load the base of `config` and put `method` on it: fresh, or as `save` wrote it to the folder `saved`.

        Raises CheckpointError where the base or what was saved cannot be loaded, ConfigError where the two do not go
        together.
        """
        super().__init__()
        if method.name == "full" and config.quantization != "none":
            raise ConfigError(
                f"method.name=full needs weights that can be trained, but got pretrained.quantization="
                f"{config.quantization}; set pretrained.quantization=none, or method.name=lora"
            )
        self.config, self.method = config, method
        whole = config
        if method.name == "full" and saved:
            whole = config.model_copy(update={"name": str(saved), "revision": ""})
        self.tokenizer: Any = load_tokenizer(whole)
        self.model: PreTrainedModel = load_pretrained(whole)
        table: Any = self.model.get_input_embeddings()
        # Where the pad token is the end token too, its row would have no gradient. What is padded has no loss anyway.
        table.padding_idx = None
        self.new_ids = add_tokens(self.model, self.tokenizer, config.new_tokens)
        """Tokens whose rows of the embeddings are not the base's."""
        table = self.model.get_input_embeddings()
        self.num_rows = len(table.weight)
        """Rows of the embeddings: at least as many as there are tokens, but for a pad token that is not needed."""
        self.row_ids: list[int] = [
            self.tokenizer.convert_tokens_to_ids(text) for text in dict.fromkeys(config.new_tokens)
        ]
        """Tokens whose rows of the embeddings adapters train: all of `config.new_tokens`."""
        self.verdict_ids = verdict_tokens(self.tokenizer, config.verdicts)
        self.matched: list[str] = []
        """Names of the linear layers that are adapted."""
        self.notes: list[str] = []
        """What was matched, what of the targets is approximated or out of reach, and what is not quantised."""
        if strangers := len(set(self.new_ids) - set(self.row_ids)):
            self.notes.append(
                f"tokens without a row in the model: {strangers}; they are the mean of all others, and trained where "
                "pretrained.new_tokens names them"
            )
        if config.quantization != "none":
            if left := unquantized(self.model):
                self.notes.append(f"not quantised: {', '.join(left)}")
            if config.cache_dequantized:
                cache_dequantized(self.model)
        self._accepted = set(inspect.signature(self.model.forward).parameters)
        self._adapted: list[PeftModel] = []
        self.probe: nn.Linear | None = None
        if config.gradient_checkpointing:
            self._checkpoint_activations()
        self.model.requires_grad_(method.name == "full")
        if beside := towers(self.model):
            # They would get no gradient, which several processes wait for.
            for tower in beside.values():
                tower.requires_grad_(False)
            self.notes.append(f"left as they are, since no text passes them: {', '.join(beside)}")
        if method.name in ("lora", "probe"):
            self._put(method, seed, saved)

    def _checkpoint_activations(self) -> None:
        """Compute activations again in the backward pass; the embeddings' output has a gradient then, as that needs."""
        try:
            self.model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        except ValueError as error:
            raise ConfigError(f"pretrained.gradient_checkpointing must be false here ({error}); set it so") from error

    def _put(self, method: MethodConfig, seed: int, saved: Path | None) -> None:
        """Put a fresh or a saved adapter on the model, and the head of a probe."""
        if method.name == "lora":
            found = match(self.model, method.targets)
            self.matched, self.notes = list(found.layers), [found.summary(), *found.notes, *self.notes]
        if method.rank:
            if saved:
                adapted = load_adapter(self.model, saved, trainable=True)
            elif method.name == "lora":
                adapted = attach(self.model, method, self.row_ids, seed, revision=self.config.revision)
            else:
                adapted = embedding_adapter(self.model, method.rank, seed, revision=self.config.revision)
            self._adapted = [adapted]
            for parameter in self.trainable().values():
                # peft holds them in fp32 beside a quantised layer, whatever that computes in.
                parameter.data = parameter.data.to(self.dtype)
        if method.name == "probe":
            head: Any = self.model.get_output_embeddings()
            device = self.model.device
            self.probe = nn.Linear(head.in_features, 2, device="meta", dtype=self.dtype).to_empty(device=device)
            nn.init.zeros_(self.probe.weight)
            nn.init.zeros_(self.probe.bias)
            if saved:
                self.probe.load_state_dict(load_tensors(saved / PROBE_FILE))

    @property
    def dtype(self) -> torch.dtype:
        """What the model is held and computes in."""
        return self.model.dtype

    @property
    def peft(self) -> PeftModel | None:
        """Peft's wrapper around the model, for saving; kept out of the module tree, which it repeats."""
        return self._adapted[0] if self._adapted else None

    @property
    def pad_id(self) -> int:
        """The token that fills windows up: the pad token, or one that is there anyway; it is never learned from."""
        choices = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(token for token in choices if token is not None and token < self.num_rows)

    def forward(self, ids_BT: Tensor, where_BT: Tensor, *, verdict: bool, positions_BT: Tensor | None = None) -> Tensor:
        """Return logits [N, V], or [N, 2] with `verdict`, at the N positions that `where_BT` marks.

        `positions_BT`, the place of each token in its document, keeps the documents of a window apart; without it all
        of a window is one.
        """
        options: dict[str, Any] = {"use_cache": False}
        if positions_BT is not None and "position_ids" in self._accepted:
            if self.model.config._attn_implementation == "flash_attention_2":
                # transformers looks for documents in a single row only; elsewhere it would let them see each other.
                ids_BT, where_BT, positions_BT = (each.reshape(1, -1) for each in (ids_BT, where_BT, positions_BT))
            options["position_ids"] = positions_BT
        if verdict and self.probe is not None:
            inner: Any = self.model.base_model
            return self.probe(inner(input_ids=ids_BT, **options).last_hidden_state[where_BT])
        if "logits_to_keep" in self._accepted:
            # Where no row of the batch has loss, the vocabulary need not be computed.
            columns = where_BT.any(0).nonzero()[:, 0]
            options["logits_to_keep"], where_BT = columns, where_BT[:, columns]
        logits_NV = self.model(input_ids=ids_BT, **options).logits[where_BT]
        return logits_NV[:, self.verdict_ids] if verdict else logits_NV

    @torch.no_grad()
    def isolates(self) -> bool:
        """Return whether documents of a window do not see each other when positions restart, as measured.

        Two windows of two documents are compared with each document alone. Without restarts they differ by what
        documents tell each other; with them, by rounding only.
        """
        before = self.training
        self.eval()
        generator = torch.Generator().manual_seed(derive_seed(0, "isolates"))
        ids_BT = torch.randint(self.num_rows, (2, 16), generator=generator).to(self.model.device)
        at_BT = torch.arange(16, device=ids_BT.device).expand(2, -1)

        def logits(ids: Tensor, positions: Tensor) -> Tensor:
            return self(ids, torch.ones_like(ids, dtype=torch.bool), verdict=False, positions_BT=positions).float()

        alone = logits(ids_BT[:, 8:], at_BT[:, :8]).view(2, 8, -1)
        together, apart = (logits(ids_BT, at).view(2, 16, -1)[:, 8:] for at in (at_BT, at_BT % 8))
        self.train(before)
        leak, error = (together - alone).abs().mean(), (apart - alone).abs().mean()
        exact = self.dtype is torch.float32 and not quantized_layers(self.model)
        return bool(error <= leak * (0.01 if exact else 0.1))

    def place(self, device: torch.device) -> None:
        """Move to `device`; a quantised model is there already."""
        if self.model.device != device:
            self.to(device)

    def begin(self, dtype: torch.dtype, attention: str, *, compiled: bool) -> None:  # noqa: ARG002
        """Check that `dtype` is what the model computes in; attention is that of `config`, and nothing is compiled.

        Raises ConfigError where it is not.
        """
        if dtype is not self.dtype:
            mine, asked = (str(each).removeprefix("torch.") for each in (self.dtype, dtype))
            raise ConfigError(
                f"training.precision must be that of the model, {mine}, but got {asked}; set training.precision=auto, "
                f"or pretrained.dtype={asked}"
            )

    def end(self) -> None:
        """Do nothing: training has changed nothing but what is trained."""

    def merged(self) -> PreTrainedModel:
        """Return a plain model with the adapter merged in and a quantised base dequantised; the learner is left as is.

        Where there is neither, that is the model itself.
        """
        return merged_copy(self.model) if self._adapted or quantized_layers(self.model) else self.model

    def save(self, folder: Path) -> None:
        """Write what was trained: an adapter in peft's format, a whole model with its tokenizer, a probe's head."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.peft is not None:
            # Rows that are not the base's and that the adapter does not hold would be other ones for whoever loads it.
            held = self.row_ids if (self.method.name, self.method.embeddings) == ("lora", "rows") else []
            self.peft.save_pretrained(str(folder), save_embedding_layers=not set(self.new_ids) <= set(held))
        elif self.method.name == "full":
            self.model.save_pretrained(folder)  # pyright: ignore[reportArgumentType]
        if self.method.name == "full" or self.config.new_tokens:
            self.tokenizer.save_pretrained(folder)
        if self.probe is not None:
            save_file({name: p.detach() for name, p in self.probe.state_dict().items()}, folder / PROBE_FILE)
