"""The supervised loop: pretraining, full fine-tuning, adapters and probes are one flat function.

One process or several, as accelerate was told: each takes its share of the windows of a step, and gradients are those
of the mean over all positions with loss of the step, however they are shared and cut.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from peft_study.models.abstract import AbstractLearner
from peft_study.models.device import this_process
from peft_study.records import Stopped
from peft_study.telling import Point
from peft_study.training.batches import Batch, Task, batch_loss, share_of, validation_loss
from peft_study.training.config import TrainingConfig
from peft_study.training.machine import check_attention, is_compiled
from peft_study.training.run import Run, TrainingSummary
from peft_study.training.sharding import check_sharded, reduce_gradients, shard, whole


def positions_of(batches: Sequence[Batch], accelerator: Accelerator) -> int:
    """Return the positions with loss of a step, those of all processes together."""
    own = sum(len(batch.answers_N) for batch in batches)
    if accelerator.num_processes == 1:
        return own
    total: Any = accelerator.reduce(torch.tensor(own, device=accelerator.device), "sum")
    return int(total)


def weights_of(batches: Sequence[Batch], num_positions: int, num_processes: int) -> list[float]:
    """Return what the mean loss of each batch of this process counts, so that the step's loss is a mean over all.

    The `num_positions` of the step count alike, in all batches and processes; where they have weights of their own,
    batches count alike. DDP takes the mean of the processes' gradients, which is made up for.
    """
    if any(batch.weights_N is not None for batch in batches):
        return [1 / len(batches)] * len(batches)
    return [len(batch.answers_N) * num_processes / max(1, num_positions) for batch in batches]


def train(
    learner: AbstractLearner,
    task: Task,
    config: TrainingConfig,
    *,
    folder: Path,
    seed: int,
    on_point: Callable[[Point], None],
    extra_metrics: Callable[[], dict[str, float]] | None = None,
    sharded: bool = False,
) -> TrainingSummary:
    """Train `learner` on `config.tokens` tokens of `task`, from the checkpoint in `folder` if there is one.

    Leaves the learner with the trained values, in fp32 where it can be. `metrics.jsonl` in `folder` gets a line at each
    of `config.points` points; `extra_metrics` adds to it. Where `on_point` raises Stopped, a checkpoint of that very
    point is left to go on from. Of several processes the first alone writes; with `sharded` each holds a part of the
    model (sharding.py), then too, else all of it. ConfigError without a learning rate.
    """
    assert config.precision != "auto", "whoever calls settles these first (machine.settled)"
    assert config.attention != "auto", "whoever calls settles these first (machine.settled)"
    this_process()
    # The run's precision is its own: what `accelerate config` says would change it, and scale gradients, unseen.
    accelerator = Accelerator(mixed_precision="no")
    device = accelerator.device
    check_attention(config, device)
    mine = share_of(config.batch_windows, accelerator.process_index, accelerator.num_processes)
    learner.place(device)
    alone = accelerator.num_processes == 1
    sharded = sharded and not alone
    if sharded:
        check_sharded(config)
        shard(learner, device)
    run = Run(learner, task, config, folder=folder, seed=seed, writes=accelerator.is_main_process)
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    learner.begin(dtype, config.attention, compiled=is_compiled(config, run.total_steps, device))
    run.masters.write()
    model: nn.Module = learner if sharded else accelerator.prepare_model(learner)
    learner.train()
    started = time.monotonic()
    while run.step < run.total_steps:
        now = time.monotonic()
        run.seconds, started = run.seconds + now - started, now
        is_due = run.is_due()
        if sharded:
            # The process that writes decides, and all have a part to give.
            due: Any = accelerator.reduce(torch.tensor(float(is_due), device=device), "sum")
            is_due = bool(due)
        if is_due:
            run.save()

        batches = task.batches(config.batch_windows, mine, config.micro_windows, device)
        losses: list[Tensor] = []
        num_positions = positions_of(batches, accelerator)
        weights = weights_of(batches, num_positions, accelerator.num_processes)
        for number, (batch, weight) in enumerate(zip(batches, weights, strict=True)):
            is_last = batch is batches[-1]
            reduce_gradients(model, now=is_last)
            with nullcontext() if is_last or sharded else accelerator.no_sync(model):
                losses.append(batch_loss(model, batch) * weight)
                losses[-1].backward()
            if alone:
                run.masters.take_gradients(add=number > 0)
        if not alone:
            # Of several processes the passes add up where they are reduced from: in the model's own precision.
            run.masters.take_gradients()
        norm = whole(torch.nn.utils.clip_grad_norm_(list(run.masters.values.values()), config.clip_norm))
        loss: Any = accelerator.reduce(torch.stack(losses).detach().sum(), "mean")
        if not torch.isfinite(norm):
            raise FloatingPointError(f"loss or gradient is not finite at step {run.step} (loss {float(loss)})")
        run.optimizers.step(run.rate())
        run.masters.write()
        run.step += 1
        run.with_loss += num_positions

        metrics: dict[str, float] = {}
        if run.step in run.points:
            metrics = {
                "train/loss": float(loss),
                "validation/loss": validation_loss(learner, task.validation(device)),
            }
            metrics |= extra_metrics() if extra_metrics else {}
            run.log(metrics)
        try:
            on_point(run.point(metrics))
        except Stopped:
            run.seconds += time.monotonic() - started
            run.save()
            raise
    run.seconds += time.monotonic() - started
    # Whatever comes after must not cost the training.
    run.save()
    learner.end()
    run.masters.write()
    learner.eval()
    return run.summary()
