"""A run in progress: what is trained, how far it is, and the checkpoint that it goes on from."""

import json
import time
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from peft_study.errors import CheckpointError, ConfigError
from peft_study.files import whole_lines, write_atomic
from peft_study.models.abstract import AbstractLearner
from peft_study.rng import TORCH_GLOBALS, derive_seed
from peft_study.telling import Point
from peft_study.training.batches import Source
from peft_study.training.checkpoint import load_state, save_state
from peft_study.training.config import TrainingConfig
from peft_study.training.losses import is_converged
from peft_study.training.optim import Masters, Optimizers, rate
from peft_study.training.sharding import part, whole

Trained = TypeVar("Trained", bound=AbstractLearner)


class TrainingSummary(NamedTuple):
    """What a run took."""

    tokens: int
    tokens_with_loss: int
    trainable_params: int
    seconds: float
    """Wall time of training, all sittings together."""
    losses: list[float]
    """Validation loss at each logged point."""
    converged: bool | None
    precision: str = ""
    """What the model computed in, `fp32` or `bf16`; empty where nothing was trained."""
    attention: str = ""
    """What computed attention; empty where nothing was trained."""


class Run(Generic[Trained]):
    """The state of one training run, from its last checkpoint in `folder` if there is one."""

    def __init__(
        self,
        learner: Trained,
        source: Source,
        config: TrainingConfig,
        *,
        folder: Path,
        seed: int,
        writes: bool = True,
    ) -> None:
        """Take up the run of `config`; without `writes` it leaves files to another process.

        Raises ConfigError without a learning rate, CheckpointError where the checkpoint is of another run.
        """
        if config.lr is None:
            raise ConfigError("training.lr must be a number here, but got None; set training.lr, or run inside a sweep")
        self.learner, self.source, self.config, self.folder, self.writes = learner, source, config, folder, writes
        self.masters = Masters(learner.trainable())
        self.optimizers = Optimizers(self.masters.values, config, config.lr)
        self.step, self.seconds, self.with_loss = 0, 0.0, 0
        self.last_saved, self.saving = time.monotonic(), 0.0
        """When the last checkpoint was written, and the seconds that it took."""
        self.losses: list[float] = []
        """Validation loss at each logged point."""
        self.tokens_per_step = config.batch_windows * source.length
        self.total_steps = -(-config.tokens // self.tokens_per_step)
        self.points = {round(i * self.total_steps / config.points) for i in range(1, config.points + 1)}
        """Steps after which the validation loss is measured and logged."""
        with TORCH_GLOBALS:
            torch.manual_seed(derive_seed(seed, "dropout"))
            if saved := load_state(folder):
                self._restore(*saved)
        self._forget_later_points()

    def _restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        try:
            with torch.no_grad():
                for name, value in self.masters.values.items():
                    value.copy_(part(tensors[f"value.{name}"], value))
            self.optimizers.load_state(tensors)
            torch.set_rng_state(tensors["rng"])
            if "rng.cuda" in tensors:
                torch.cuda.set_rng_state(tensors["rng.cuda"])
        except (KeyError, IndexError, ValueError, RuntimeError) as error:
            reason, remedy = str(error).splitlines()[0], f"delete {self.folder} to start this run again"
            raise CheckpointError(f"the checkpoint in {self.folder} is of another run ({reason}); {remedy}") from error
        self.step, self.seconds, self.with_loss = meta["step"], meta["seconds"], meta["tokens_with_loss"]
        self.losses, self.source.next_index = meta["losses"], meta["next_index"]

    def _forget_later_points(self) -> None:
        """Drop what was logged after the checkpoint that the run goes on from."""
        path = self.folder / "metrics.jsonl"
        if self.writes and path.is_file():
            lines = [line.decode() for line in whole_lines(path)]
            kept = [line for line in lines if json.loads(line)["tokens"] <= self.step * self.tokens_per_step]
            write_atomic(path, "".join(line + "\n" for line in kept))

    def is_due(self) -> bool:
        """Return whether it is time for a checkpoint; unless there is to be one after every step, writing them takes a
        tenth of the time at most."""
        seconds, waited = self.config.checkpoint_seconds, time.monotonic() - self.last_saved
        return self.writes and (seconds == 0 or waited > max(seconds, 9 * self.saving))

    def save(self) -> None:
        """Write a checkpoint: all that the run needs to go on, as tensors by name.

        Where these are shared out among processes, all must call it at the same step.
        """
        started = time.monotonic()
        held = {f"value.{name}": value for name, value in self.masters.values.items()} | self.optimizers.state()
        tensors: dict[str, Tensor] = {}
        for name, tensor in held.items():
            # One at a time: no device has room for all that is shared out among many.
            gathered = whole(tensor)
            if self.writes:
                tensors[name] = gathered if gathered is tensor else gathered.cpu()
        if not self.writes:
            return
        tensors["rng"] = torch.get_rng_state()
        if next(iter(self.masters.values.values())).is_cuda:
            tensors["rng.cuda"] = torch.cuda.get_rng_state()
        meta = {
            "step": self.step,
            "seconds": self.seconds,
            "tokens_with_loss": self.with_loss,
            "losses": self.losses,
            "next_index": self.source.next_index,
        }
        save_state(self.folder, tensors, meta)
        self.last_saved = time.monotonic()
        self.saving = self.last_saved - started

    def rate(self) -> float:
        """Return the learning rate of the next step as a share of the peak."""
        return rate(self.step, self.total_steps, self.config.warmup_share, self.config.cooldown_share)

    def log(self, metrics: dict[str, float]) -> None:
        """Keep the metrics of a point, `validation/loss` among them."""
        self.losses.append(metrics["validation/loss"])
        if self.writes:
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"tokens": self.step * self.tokens_per_step, **metrics}) + "\n")

    def point(self, metrics: dict[str, float]) -> Point:
        """Return where the run is."""
        return Point(self.step * self.tokens_per_step, self.total_steps * self.tokens_per_step, metrics)

    def summary(self) -> TrainingSummary:
        """Return what the run took."""
        return TrainingSummary(
            self.step * self.tokens_per_step,
            self.with_loss,
            self.learner.num_trainable(),
            self.seconds,
            self.losses,
            is_converged(self.losses),
            self.config.precision,
            self.config.attention,
        )
