"""The adapter bank: adapters that train together over one frozen base, in one forward and one backward pass.

Each slot has its own rank, scale, targets, learning rate, skill, data and end, and gets what it would get alone, to
rounding: windows of different slots meet in no product but those with frozen matrices, row by row. (In bf16 that
depends on its company: beside others an update is added to an output that is rounded already, beside one of high rank
to its matrix, where most of it is lost in the first steps, while it is small.) Narrower adapters are padded
with zeros, whose gradients are zero. A slot is an ordinary `Run`: its checkpoint can be gone on from alone, and its
learner, in peft's form, has the trained values whenever somebody looks.

Shapes: K slots, B windows of all slots, T tokens, V words, D model width.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Qwen3ForCausalLM

from peft_study.errors import ConfigError
from peft_study.models.adapters import Linear, Role, place_of, scale_of
from peft_study.models.attention import first_seen
from peft_study.models.config import MethodConfig
from peft_study.models.fused import Attention, backbone, marked_places, read_layers, seen_by
from peft_study.models.learner import Learner
from peft_study.telling import Point
from peft_study.training.batches import Batch, StreamTask, loss_of, validation_loss
from peft_study.training.config import TrainingConfig
from peft_study.training.optim import BETAS, EPSILON
from peft_study.training.run import Run, TrainingSummary

TABLE, HEAD = "model.embed_tokens", "lm_head"


@dataclass(eq=False, slots=True)
class Slot:
    """One adapter in training."""

    run: Run[Learner]
    task: StreamTask
    """What the run reads."""
    on_point: Callable[[Point], bool]
    """Told where the run is after each step; True ends it there."""
    error: Exception | None = None
    """Why the run failed."""
    stopped: bool = False
    """Whether `on_point` ended it."""


def why_alone(method: MethodConfig, config: TrainingConfig) -> str:
    """Return why a run cannot share a bank, or nothing where it can."""
    if method.name != "lora":
        return f"method {method.name} trains more than adapters"
    if method.dropout:
        return "dropout is drawn from one generator"
    if config.optimizer != "adamw":
        return f"optimizer {config.optimizer} is not adamw"
    if config.micro_windows:
        return f"a step in passes of {config.micro_windows} windows is not one pass"
    return ""


class Bank:
    """The adapters of some slots side by side; made anew whenever a slot comes or goes."""

    def __init__(
        self,
        model: Qwen3ForCausalLM,
        slots: Sequence[Slot],
        attention: Attention,
        run_layers: Callable[..., Tensor] = backbone,
    ) -> None:
        """Stack the adapters of `slots` over the frozen base `model`; ConfigError for one that must train alone."""
        for slot in slots:
            if why := why_alone(slot.run.learner.method, slot.run.config):
                raise ConfigError(f"{slot.run.folder} cannot train beside others: {why}; train it alone")
        self.model, self.slots, self.run_layers = model, list(slots), run_layers
        self.attention: Attention = attention
        self.device = model.lm_head.weight.device
        self.modules = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        self.rows = torch.tensor(slots[0].run.learner.row_ids, device=self.device)
        self.values: dict[str, Tensor] = {}
        """By module and role, of all slots: [K, ..., ...]."""
        self.means: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}
        self.trains: dict[str, Tensor] = {}
        """[K, 1, 1]: whether a slot trains this value."""
        self.scales: dict[str, Tensor] = {}
        """[K, 1, 1]: what the update of a module is multiplied by."""
        rank = max(slot.run.learner.method.rank for slot in slots)
        for k, slot in enumerate(slots):
            wrapped = dict(slot.run.learner.model.named_modules())
            for name, value in slot.run.masters.values.items():
                module, role = place_of(name.removeprefix("model."))
                self._make_room(module, role, rank)
                mean, square, _ = slot.run.optimizers.moments(value)
                for stacked, own in ((self.values, value), (self.means, mean), (self.squares, square)):
                    self._part(stacked, name, k).copy_(own.detach())
                self.trains[f"{module}/{role}"][k] = 1
                if role != "rows":
                    self.scales[module][k] = scale_of(wrapped[module])
        for value in self.values.values():
            value.requires_grad_()

    def _make_room(self, module: str, role: Role, rank: int) -> None:
        if (key := f"{module}/{role}") in self.values:
            return
        count, embedding = len(self.slots), self.model.model.embed_tokens.weight.detach()
        if role == "rows":
            table = self.model.lm_head.weight.detach() if module == HEAD else embedding
            self.values[key] = table[self.rows].float().expand(count, -1, -1).clone()
        else:
            inputs, outputs = embedding.shape if module == TABLE else self.modules[module].weight.T.shape
            width = 2 * rank if module == TABLE else rank
            shape = (count, width, inputs) if role in ("down", "table_down") else (count, outputs, width)
            self.values[key] = torch.zeros(shape, device=self.device)
            self.scales.setdefault(module, torch.zeros(count, 1, 1, device=self.device))
        self.means[key], self.squares[key] = torch.zeros_like(self.values[key]), torch.zeros_like(self.values[key])
        self.trains[key] = torch.zeros(count, 1, 1, device=self.device)

    def _part(self, stacked: dict[str, Tensor], name: str, k: int) -> Tensor:
        """Return the view of what parameter `name` of slot k is, without what pads it."""
        module, role = place_of(name.removeprefix("model."))
        shape = self.slots[k].run.masters.values[name].shape
        return stacked[f"{module}/{role}"].detach()[k][tuple(slice(0, size) for size in shape)]

    @torch.no_grad()
    def store(self) -> None:
        """Hand values and the optimiser's state back to the runs and their learners."""
        for k, slot in enumerate(self.slots):
            for name, value in slot.run.masters.values.items():
                value.copy_(self._part(self.values, name, k))
                mean, square = self._part(self.means, name, k), self._part(self.squares, name, k)
                slot.run.optimizers.set_moments(value, mean, square, slot.run.step)
            slot.run.masters.write()

    def _read(self, dtype: torch.dtype) -> Callable[[nn.Module], Linear]:
        names = {id(module): name for name, module in self.modules.items()}

        def read(module: nn.Module) -> Linear:
            linear: Any = module
            name = names[id(module)]
            if (key := f"{name}/down") not in self.values:
                return Linear(linear.weight, linear.bias, None, None, 0.0, 0.0)
            down, up = self.values[key].to(dtype), self.values[f"{name}/up"].to(dtype)
            return Linear(linear.weight, linear.bias, down, up, self.scales[name].to(dtype), 0.0)

        return read

    def _tables(self, module: str, weight_VD: Tensor) -> Tensor:
        """Return the embedding of each slot [K, V, D]."""
        tables = weight_VD.expand(len(self.slots), -1, -1)
        if (key := f"{module}/rows") in self.values:
            tables = tables.index_copy(1, self.rows, self.values[key].to(weight_VD.dtype))
        if (key := f"{module}/table_down") in self.values:
            update = (self.values[f"{module}/table_up"] @ self.values[key]).mT * self.scales[module]
            tables = tables + update.to(weight_VD.dtype)
        return tables

    def losses(self, batches: Sequence[Batch]) -> list[Tensor]:
        """Return the loss of each slot on its batch; all batches have the same shape."""
        inner: Any = self.model.model
        config, learner = self.model.config, self.slots[0].run.learner
        ids_BT = torch.cat([batch.ids_BT for batch in batches])
        count, length = batches[0].ids_BT.shape
        layers = read_layers(self.model, self._read(self.model.dtype))
        first = {window: first_seen(ids_BT, learner.end_id, window) for window in {layer.window for layer in layers}}
        table_KVD = self._tables(TABLE, inner.embed_tokens.weight)
        slot_B1 = torch.arange(len(batches), device=self.device).repeat_interleave(count)[:, None]
        x_BTD = functional.embedding(ids_BT + slot_B1 * table_KVD.shape[1], table_KVD.flatten(0, 1))
        cos, sin = inner.rotary_emb(x_BTD, torch.arange(length, device=self.device)[None])
        hidden_BTD = self.run_layers(
            x_BTD,
            layers,
            inner.norm.weight,
            seen_by(first, self.attention, x_BTD.dtype),
            (cos[0], sin[0]),
            heads=config.num_attention_heads,
            eps=config.rms_norm_eps,
            attention=self.attention,
            training=True,
        )
        losses: list[Tensor] = []
        head_KVD, parts = self._tables(HEAD, self.model.lm_head.weight), hidden_BTD.split(count)
        for batch, hidden_BTD, head_VD in zip(batches, parts, head_KVD, strict=True):
            rows = head_VD[learner.verdict_ids] if batch.verdict else head_VD
            places, marked = marked_places(batch.where_BT)
            losses.append(loss_of(functional.linear(hidden_BTD.flatten(0, 1)[places], rows)[:marked], batch))
        return losses

    @torch.no_grad()
    def step(self) -> None:
        """Take one step of AdamW in each slot, its gradient cut to its own largest norm.

        A slot whose gradient is not finite gets an error and stays as it is.
        """
        runs = [slot.run for slot in self.slots]
        gradients = {key: value.grad * self.trains[key] for key, value in self.values.items() if value.grad is not None}
        squares = torch.stack([gradient.square().sum((1, 2)) for gradient in gradients.values()]).sum(0)
        norms = squares.sqrt().tolist()
        for slot, norm in zip(self.slots, norms, strict=True):
            if not math.isfinite(norm):
                slot.error = FloatingPointError(f"loss or gradient is not finite at step {slot.run.step}")

        def by_slot(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, device=self.device)[:, None, None]

        first, second = BETAS
        rates = [(run.config.lr or 0.0) * run.rate() for run in runs]
        fine = by_slot([float(slot.error is None) for slot in self.slots])
        cut = by_slot([min(1.0, run.config.clip_norm / (norm + 1e-6)) for run, norm in zip(runs, norms, strict=True)])
        decay = by_slot([1 - rate * run.config.weight_decay for rate, run in zip(rates, runs, strict=True)])
        size = by_slot([rate / (1 - first ** (run.step + 1)) for rate, run in zip(rates, runs, strict=True)])
        spread = by_slot([(1 - second ** (run.step + 1)) ** 0.5 for run in runs])
        for key, gradient in gradients.items():
            on = (self.trains[key] * fine).bool()
            gradient = torch.where(on, gradient * cut, 0.0)
            value, mean, square = self.values[key], self.means[key], self.squares[key]
            mean.lerp_(gradient, 1 - first)
            square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            update = size * mean / (square.sqrt() / spread + EPSILON)
            value.copy_(torch.where(on, value * decay - update, value))
            value.grad = None


def train_bank(
    model: Qwen3ForCausalLM,
    waiting: Callable[[], Slot | None],
    on_end: Callable[[Slot, TrainingSummary | None], None],
    *,
    size: int,
    attention: Attention,
    compile_layers: bool = False,
) -> None:
    """Train what `waiting` gives, up to `size` slots at once, over the frozen base `model`.

    A slot that ends makes room for the next. `on_end` gets it with what it took, its learner trained; with None where
    it failed (`error`) or was ended by its `on_point` (`stopped`). `model` computes in its own dtype.
    """
    model.requires_grad_(requires_grad=False)
    run_layers = torch.compile(backbone) if compile_layers else backbone
    slots: list[Slot] = []
    bank: Bank | None = None
    while True:
        while len(slots) < size and (new := waiting()):
            if new.run.step >= new.run.total_steps:
                new.run.learner.eval()
                on_end(new, new.run.summary())
                continue
            if bank is not None:
                bank.store()
            slots, bank = [*slots, new], None
        if not slots:
            return
        bank = bank or Bank(model, slots, attention, run_layers)
        started = time.monotonic()
        batches = [slot.task.batches(slot.run.config.batch_windows, slice(None), 0, bank.device)[0] for slot in slots]
        losses = bank.losses(batches)
        torch.stack(losses).sum().backward()
        bank.step()
        for slot, batch in zip(slots, batches, strict=True):
            slot.run.step += slot.error is None
            slot.run.with_loss += len(batch.answers_N)
            slot.run.seconds += (time.monotonic() - started) / len(slots)

        due = [slot for slot in slots if slot.run.step in slot.run.points and slot.error is None]
        saving = [slot for slot in slots if slot.run.is_due()]
        if due or saving:
            bank.store()
        for slot, loss in zip(slots, losses, strict=True):
            metrics: dict[str, float] = {}
            if slot in due:
                learner = slot.run.learner
                learner.attention = attention
                found = validation_loss(learner, slot.task.validation(bank.device))
                learner.attention = "sdpa"
                metrics = {"train/loss": loss.item(), "validation/loss": found}
                slot.run.log(metrics)
            if slot in saving and slot.error is None:
                slot.run.save()
            slot.stopped = slot.error is None and slot.on_point(slot.run.point(metrics))

        ended = [s for s in slots if s.error or s.stopped or s.run.step >= s.run.total_steps]
        if ended:
            bank.store()
            slots, bank = [slot for slot in slots if slot not in ended], None
        for slot in ended:
            slot.run.learner.eval()
            if slot.error is None:
                # Whatever comes after must not cost the training.
                slot.run.save()
            on_end(slot, None if slot.error or slot.stopped else slot.run.summary())
