"""The supervised loop: pretraining, full fine-tuning, adapters and probes are one flat function.

Shapes: B windows of a step, T tokens of a window, N positions with loss.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from peft_study.errors import ConfigError
from peft_study.igsm.stream import Tokens, WindowStream
from peft_study.igsm.text import Kind
from peft_study.models.learner import Learner
from peft_study.records import Stopped
from peft_study.skills.config import SkillConfig
from peft_study.skills.targets import NOT_A_DECISION, WRONG, correction_targets, decision_labels
from peft_study.training.config import TrainingConfig
from peft_study.training.losses import correction_loss, detection_loss
from peft_study.training.machine import is_compiled
from peft_study.training.run import Point, Run, TrainingSummary


class Batch(NamedTuple):
    """What a step reads."""

    ids_BT: Tensor
    where_BT: Tensor
    """Positions whose output has loss."""
    answers_N: Tensor
    """Next words (correction), or 1 where the step is wrong (detection)."""
    weights_N: Tensor | None = None
    """Weight of each, where they differ."""


def make_batch(tokens: Tokens, skill: SkillConfig, device: torch.device) -> Batch:
    """Return the inputs, the positions and the answers of `skill` for windows of tokens [B, T]."""
    ids = torch.from_numpy(tokens.ids.astype(np.int64))
    if skill.name == "detection":
        labels = torch.from_numpy(decision_labels(tokens.kinds))
        where = labels != NOT_A_DECISION
        answers = (labels == WRONG)[where].long()
        return Batch(ids.to(device), where.to(device), answers.to(device))
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
    return Batch(ids.to(device), where.to(device), ids[targets].to(device), weights)


def batch_loss(learner: torch.nn.Module, batch: Batch, skill: SkillConfig) -> Tensor:
    """Return the mean loss of a batch, in nats."""
    return loss_of(learner(batch.ids_BT, batch.where_BT, verdict=skill.name == "detection"), batch, skill)


def loss_of(logits: Tensor, batch: Batch, skill: SkillConfig) -> Tensor:
    """Return the mean loss of logits [N, V], or [N, 2] for detection, at the positions of a batch, in nats."""
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


def cast(learner: Learner, dtype: torch.dtype) -> None:
    """Change the type of the parameters alone: the rotary frequencies, a buffer, would not come back as they were."""
    for parameter in learner.parameters():
        parameter.data = parameter.data.to(dtype)


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
    `config.points` points; `extra_metrics` adds to it. Where `on_point` raises Stopped, a checkpoint of that very point
    is left to go on from. Raises ConfigError without a learning rate.
    """
    attention = config.attention
    assert config.precision != "auto", "whoever calls settles these first (machine.settled)"
    assert attention != "auto", "whoever calls settles these first (machine.settled)"
    accelerator = Accelerator()
    device, share = accelerator.device, accelerator.process_index
    half = config.precision == "bf16"
    if attention == "varlen" and device.type != "cpu":
        raise ConfigError(
            f"training.attention: varlen computes on a CPU, but this is {device.type}; set training.attention to auto"
        )
    measured = skill.model_copy(update={"problem_weight": 0.0})
    learner.to(device)
    run = Run(learner, stream, config, folder=folder, seed=seed)
    frozen = {name: p.detach().clone() for name, p in learner.named_parameters() if not p.requires_grad}
    cast(learner, torch.bfloat16 if half else torch.float32)
    run.masters.write()
    learner.attention = attention
    if is_compiled(config, run.total_steps, device):
        learner.compile_layers()
    model = accelerator.prepare_model(learner)
    learner.train()
    started = last_saved = time.monotonic()
    while run.step < run.total_steps:
        now = time.monotonic()
        run.seconds, started = run.seconds + now - started, now
        if now - last_saved > config.checkpoint_seconds:
            run.save()
            last_saved = now

        windows = stream.read(config.batch_windows)
        mine = Tokens(
            windows.ids[share :: accelerator.num_processes], windows.kinds[share :: accelerator.num_processes]
        )
        batch = make_batch(mine, skill, device)
        loss = batch_loss(model, batch, skill)
        accelerator.backward(loss)
        run.masters.take_gradients()
        norm = torch.nn.utils.clip_grad_norm_(list(run.masters.values.values()), config.clip_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"loss or gradient is not finite at step {run.step} (loss {loss.item()})")
        run.optimizers.step(run.rate())
        run.masters.write()
        run.step += 1
        run.with_loss += len(batch.answers_N)

        metrics: dict[str, float] = {}
        if run.step in run.points:
            metrics = {
                "train/loss": loss.item(),
                "validation/loss": validation_loss(learner, validation, measured, device),
            }
            metrics |= extra_metrics(learner) if extra_metrics else {}
            run.log(metrics)
        try:
            on_point(run.point(metrics))
        except Stopped:
            run.seconds += time.monotonic() - started
            run.save()
            raise
    run.seconds += time.monotonic() - started
    cast(learner, torch.float32)
    run.masters.write()
    with torch.no_grad():
        for name, parameter in learner.named_parameters():
            if name in frozen:
                parameter.copy_(frozen[name])
    learner.attention = "sdpa"
    learner.eval()
    return run.summary()
