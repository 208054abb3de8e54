"""Runs of several threads in one bank: each thread trains as if it were alone, and whatever can share a pass does."""

import copy
import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import Qwen3ForCausalLM

from peft_study.models.device import this_device
from peft_study.models.fused import Attention
from peft_study.models.learner import Learner, cast_parameters
from peft_study.records import Stopped
from peft_study.telling import Point
from peft_study.training.bank import Slot, train_bank, why_alone
from peft_study.training.batches import StreamTask
from peft_study.training.config import TrainingConfig
from peft_study.training.machine import check_attention, is_compiled
from peft_study.training.run import Run, TrainingSummary
from peft_study.training.supervised import train


class Kind(NamedTuple):
    """What runs of one bank have in common."""

    base: str
    """Digest of the frozen weights."""
    precision: str
    attention: Attention
    compiled: bool
    windows: int
    """Windows of a step."""
    length: int
    """Tokens of a window."""


@dataclass(eq=False, slots=True)
class _Seat:
    """A run that waits, or trains."""

    slot: Slot
    kind: Kind
    ended: threading.Event = field(default_factory=threading.Event)
    summary: TrainingSummary | None = None
    stopped: Stopped | None = None
    error: BaseException | None = None


class SharedBank:
    """Trains runs over one frozen base at a time, up to `size` side by side; those of another base wait."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.waiting: list[_Seat] = []
        self.seated: dict[Slot, _Seat] = {}
        self.lock = threading.Lock()
        """Held for a look at, or a change of, what waits."""
        self.serving = False

    def train(
        self,
        learner: Learner,
        task: StreamTask,
        config: TrainingConfig,
        *,
        folder: Path,
        seed: int,
        on_point: Callable[[Point], None],
    ) -> TrainingSummary:
        """Train as `supervised.train` does, to the same values but for rounding, beside what other threads bring.

        What must train alone does, in this thread.
        """
        if why_alone(learner.method, config):
            return train(learner, task, config, folder=folder, seed=seed, on_point=on_point)
        device = this_device()
        check_attention(config, device)
        learner.place(device)
        run = Run(learner, task, config, folder=folder, seed=seed)
        run.masters.write()
        kind = Kind(
            base=_digest(_base_of(learner)),
            precision=config.precision,
            attention=config.attention,  # pyright: ignore[reportArgumentType]
            compiled=is_compiled(config, run.total_steps, device),
            windows=config.batch_windows,
            length=task.length,
        )

        def told(point: Point) -> bool:
            try:
                on_point(point)
            except Stopped as stopped:
                seat.stopped = stopped
            return seat.stopped is not None

        seat = _Seat(Slot(run, task, told), kind)
        with self.lock:
            self.waiting.append(seat)
            if not self.serving:
                self.serving = True
                threading.Thread(target=self._serve, name="bank", daemon=True).start()
        seat.ended.wait()
        if seat.stopped is not None:
            raise seat.stopped
        if seat.error is not None:
            raise seat.error
        assert seat.summary is not None
        return seat.summary

    def _serve(self) -> None:
        """Train until nothing waits."""
        while True:
            with self.lock:
                first = next(iter(self.waiting), None)
                if first is None:
                    self.serving = False
                    return
            try:
                self._open(first)
            except BaseException as error:  # whoever waits for it must hear of it, whatever it is
                lost = [*self.seated.values(), *([first] if first in self.waiting else [])]
                with self.lock:
                    self.waiting = [seat for seat in self.waiting if seat not in lost]
                    self.seated = {}
                for seat in lost:
                    seat.error = error
                    seat.ended.set()

    def _open(self, first: _Seat) -> None:
        """Train all runs of the kind of `first`, until none is left."""
        kind = first.kind
        model = _base_of(first.slot.run.learner)
        cast_parameters(model, torch.bfloat16 if kind.precision == "bf16" else torch.float32)

        def waiting() -> Slot | None:
            with self.lock:
                seat = next((seat for seat in self.waiting if seat.kind == kind), None)
                if seat is None:
                    return None
                self.waiting.remove(seat)
                self.seated[seat.slot] = seat
                return seat.slot

        def on_end(slot: Slot, summary: TrainingSummary | None) -> None:
            with self.lock:
                seat = self.seated.pop(slot)
            seat.summary, seat.error = summary, slot.error
            seat.ended.set()

        train_bank(model, waiting, on_end, size=self.size, attention=kind.attention, compile_layers=kind.compiled)


def _base_of(learner: Learner) -> Qwen3ForCausalLM:
    """Return a copy of the model below the adapter of `learner`."""
    assert learner.peft is not None, "only adapters share a bank"
    base = copy.deepcopy(learner.peft).unload()
    assert isinstance(base, Qwen3ForCausalLM)
    return base


def _digest(model: Qwen3ForCausalLM) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()
