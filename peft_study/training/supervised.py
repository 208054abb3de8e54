"""The supervised loop: pretraining, full fine-tuning, adapters and probes are one flat function.

Shapes: B windows of a step, T tokens of a window, N positions with loss.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from peft_study.errors import CheckpointError, ConfigError
from peft_study.files import write_atomic
from peft_study.igsm.stream import Tokens, WindowStream
from peft_study.igsm.text import Kind
from peft_study.models.learner import Learner
from peft_study.rng import derive_seed
from peft_study.skills.config import SkillConfig
from peft_study.skills.targets import NOT_A_DECISION, WRONG, correction_targets, decision_labels
from peft_study.training.checkpoint import load_state, save_state
from peft_study.training.config import TrainingConfig
from peft_study.training.losses import correction_loss, detection_loss, is_converged
from peft_study.training.optim import Masters, Optimizers, rate


class Point(NamedTuple):
    """Where a run is."""

    tokens: int
    """Tokens read."""
    total: int
    """Tokens to be read in all."""
    metrics: dict[str, float]
    """Empty between the points that are logged."""


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


class _Batch(NamedTuple):
    ids_BT: Tensor
    where_BT: Tensor
    """Positions whose output has loss."""
    answers_N: Tensor
    """Next words (correction), or 1 where the step is wrong (detection)."""
    weights_N: Tensor | None = None
    """Weight of each, where they differ."""


def make_batch(tokens: Tokens, skill: SkillConfig, device: torch.device) -> _Batch:
    """Return the inputs, the positions and the answers of `skill` for windows of tokens [B, T]."""
    ids = torch.from_numpy(tokens.ids.astype(np.int64))
    if skill.name == "detection":
        labels = torch.from_numpy(decision_labels(tokens.kinds))
        where = labels != NOT_A_DECISION
        answers = (labels == WRONG)[where].long()
        return _Batch(ids.to(device), where.to(device), answers.to(device))
    targets = torch.from_numpy(correction_targets(tokens.kinds, masked=skill.masked))
    weights = None
    if skill.problem_weight:
        given = torch.from_numpy(tokens.kinds == Kind.PROBLEM)
        given[:, 0] = False
        spread = given * (skill.problem_weight / max(1, int(given.sum()))) + targets / max(1, int(targets.sum()))
        targets = targets | given
        weights = spread[targets].to(device)
    # The output at a position predicts the next token, so everything moves one to the left.
    where = torch.zeros_like(targets)
    where[:, :-1] = targets[:, 1:]
    return _Batch(ids.to(device), where.to(device), ids[targets].to(device), weights)


def batch_loss(learner: torch.nn.Module, batch: _Batch, skill: SkillConfig) -> Tensor:
    """Return the mean loss of a batch, in nats."""
    logits = learner(batch.ids_BT, batch.where_BT, verdict=skill.name == "detection")
    if skill.name == "detection":
        return detection_loss(logits, batch.answers_N)
    return correction_loss(logits, batch.answers_N, batch.weights_N)


@torch.no_grad()
def validation_loss(learner: Learner, validation: Tokens, skill: SkillConfig, device: torch.device) -> float:
    """Return the mean loss over `validation` [windows, T], eight windows at a time."""
    learner.eval()
    total, count = 0.0, 0
    for start in range(0, len(validation.ids), 8):
        batch = make_batch(
            Tokens(validation.ids[start : start + 8], validation.kinds[start : start + 8]), skill, device
        )
        total += float(batch_loss(learner, batch, skill)) * len(batch.answers_N)
        count += len(batch.answers_N)
    learner.train()
    return total / max(1, count)


def _append(path: Path, record: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def _forget_after(path: Path, tokens: int) -> None:
    """Drop what was logged after the checkpoint that the run goes on from."""
    if path.is_file():
        kept = [line for line in path.read_text().splitlines() if json.loads(line)["tokens"] <= tokens]
        write_atomic(path, "".join(line + "\n" for line in kept))


def _cast(learner: Learner, dtype: torch.dtype) -> None:
    """Change the type of the parameters alone: the rotary frequencies, a buffer, would not come back as they were."""
    for parameter in learner.parameters():
        parameter.data = parameter.data.to(dtype)


def _state(masters: Masters, optimizers: Optimizers, device: torch.device) -> dict[str, Tensor]:
    """Return all that a run needs to go on, as tensors by name."""
    values: dict[str, Tensor] = {f"value.{name}": value for name, value in masters.values.items()}
    generators = {"rng": torch.get_rng_state()}
    if device.type == "cuda":
        generators["rng.cuda"] = torch.cuda.get_rng_state(device)
    return values | optimizers.state() | generators


def _restore(tensors: dict[str, Tensor], masters: Masters, optimizers: Optimizers, device: torch.device) -> None:
    """Put back what `_state` returned; KeyError or RuntimeError where it is that of another model."""
    with torch.no_grad():
        for name, value in masters.values.items():
            value.copy_(tensors[f"value.{name}"])
    optimizers.load_state(tensors)
    torch.set_rng_state(tensors["rng"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensors["rng.cuda"], device)


def train(
    learner: Learner,
    stream: WindowStream,
    validation: Tokens,
    skill: SkillConfig,
    config: TrainingConfig,
    *,
    folder: Path,
    seed: int,
    on_point: Callable[[Point], None],
    extra_metrics: Callable[[Learner], dict[str, float]] | None = None,
) -> TrainingSummary:
    """Train `learner` on `config.tokens` tokens of `stream`, from the checkpoint in `folder` if there is one.

    Leaves the learner in fp32 with the trained values. `metrics.jsonl` in `folder` gets a line at each of
    `config.points` points; `extra_metrics` adds to it. Raises ConfigError without a learning rate.
    """
    if config.lr is None:
        raise ConfigError("training.lr must be a number here, but got None; set training.lr, or run inside a sweep")
    attention = config.attention
    assert config.precision != "auto" != attention, "whoever calls settles these first (machine.settled)"
    accelerator = Accelerator()
    device, share = accelerator.device, accelerator.process_index
    half = config.precision == "bf16"
    if attention == "varlen" and (half or device.type != "cpu"):
        raise ConfigError(
            f"training.attention: varlen computes in fp32 on a CPU, but this is {config.precision} on {device.type}; "
            "set training.attention to auto"
        )
    measured = skill.model_copy(update={"problem_weight": 0.0})
    learner.to(device)
    masters = Masters(learner.trainable())
    optimizers = Optimizers(masters.values, config, config.lr)
    frozen = {name: p.detach().clone() for name, p in learner.named_parameters() if not p.requires_grad}
    _cast(learner, torch.bfloat16 if half else torch.float32)
    learner.attention = attention
    step, seconds, with_loss, losses = 0, 0.0, 0, list[float]()
    tokens_per_step = config.batch_windows * stream.length
    total_steps = -(-config.tokens // tokens_per_step)
    torch.manual_seed(derive_seed(seed, "dropout"))
    if saved := load_state(folder):
        tensors, meta = saved
        try:
            _restore(tensors, masters, optimizers, device)
        except (KeyError, RuntimeError) as error:
            reason, remedy = str(error).splitlines()[0], f"delete {folder} to start this run again"
            raise CheckpointError(f"the checkpoint in {folder} is of another run ({reason}); {remedy}") from error
        step, seconds, with_loss, losses = meta["step"], meta["seconds"], meta["tokens_with_loss"], meta["losses"]
        stream.next_index = meta["next_index"]
        masters.write()
    _forget_after(folder / "metrics.jsonl", step * tokens_per_step)
    if config.compile:
        learner.compile_layers()
    run = accelerator.prepare_model(learner)
    points = {round(i * total_steps / config.points) for i in range(1, config.points + 1)}
    started = last_saved = time.monotonic()
    learner.train()
    while step < total_steps:
        if time.monotonic() - last_saved > config.checkpoint_seconds:
            meta = {
                "step": step,
                "seconds": seconds + time.monotonic() - started,
                "tokens_with_loss": with_loss,
                "losses": losses,
                "next_index": stream.next_index,
            }
            save_state(folder, _state(masters, optimizers, device), meta)
            last_saved = time.monotonic()

        windows = stream.read(config.batch_windows)
        mine = Tokens(
            windows.ids[share :: accelerator.num_processes], windows.kinds[share :: accelerator.num_processes]
        )
        batch = make_batch(mine, skill, device)
        loss = batch_loss(run, batch, skill)
        accelerator.backward(loss)
        masters.take_gradients()
        norm = torch.nn.utils.clip_grad_norm_(list(masters.values.values()), config.clip_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"loss or gradient is not finite at step {step} (loss {loss.item()})")
        optimizers.step(rate(step, total_steps, config.warmup_share, config.cooldown_share))
        masters.write()
        step += 1
        with_loss += len(batch.answers_N)

        metrics: dict[str, float] = {}
        if step in points:
            losses.append(validation_loss(learner, validation, measured, device))
            metrics = {"train/loss": loss.item(), "validation/loss": losses[-1]}
            metrics |= extra_metrics(learner) if extra_metrics else {}
            _append(folder / "metrics.jsonl", {"tokens": step * tokens_per_step, **metrics})
        on_point(Point(step * tokens_per_step, total_steps * tokens_per_step, metrics))
    seconds += time.monotonic() - started
    _cast(learner, torch.float32)
    masters.write()
    with torch.no_grad():
        for name, parameter in learner.named_parameters():
            if name in frozen:
                parameter.copy_(frozen[name])
    learner.attention = "sdpa"
    learner.eval()
    return TrainingSummary(
        total_steps * tokens_per_step,
        with_loss,
        learner.num_trainable(),
        seconds,
        losses,
        is_converged(losses),
        config.precision,
        config.attention,
    )
