"""Training, ours and that of transformers' Trainer with peft, on the same windows in the same order.

Both train a Qwen3 of the study's shape with AdamW, the same rates, loss on the same positions, documents isolated.
"""

import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.race import Gate
from peft_study.igsm.families import NANO
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.stream import WindowStream
from peft_study.igsm.tokenizer import word_ids
from peft_study.models.adapters import attach
from peft_study.models.attention import first_seen
from peft_study.models.base import Architecture, build_base
from peft_study.models.config import MethodConfig
from peft_study.models.device import this_device
from peft_study.models.learner import Learner
from peft_study.skills.config import SkillConfig
from peft_study.skills.targets import correction_targets
from peft_study.telling import Point
from peft_study.training.bank import Slot, train_bank
from peft_study.training.batches import StreamTask, batch_loss
from peft_study.training.config import TrainingConfig
from peft_study.training.machine import prepare_process, settled
from peft_study.training.optim import BETAS, EPSILON
from peft_study.training.run import Run
from peft_study.training.supervised import train

SHAPES = {
    "nano": Architecture(),
    "10M": Architecture(layers=8, width=320, heads=10, mlp_width=864, local_layers=0),
    "124M": Architecture(layers=12, width=768, heads=12, mlp_width=3_440, local_layers=0),
}
STEPS = 10_000
"""More than are ever taken: the race ends both."""
STREAM = StreamSettings(family=NANO, retry_rate=0.5)
RATE = 1e-3


def tokens_of(windows: int) -> int:
    """Return the tokens of a step."""
    return windows * WindowStream(STREAM).length


def products(shape: str, windows: int) -> float:
    """Return the floating-point operations of a full step in the products of its layers: 6 a weight and token.

    Attention and logits, which few positions need, are not counted: what a step reaches by this is a lower bound.
    """
    size = SHAPES[shape]
    weights = size.layers * size.width * (4 * size.width + 3 * size.mlp_width)
    return 6.0 * weights * tokens_of(windows)


def _config(learner: Learner, stream: WindowStream, windows: int, folder: Path, *, every: int = 1) -> TrainingConfig:
    """Return how ours trains: with the loss after each `every` steps, kernels settled in `folder`."""
    config = TrainingConfig(
        tokens=STEPS * windows * stream.length,
        batch_windows=windows,
        lr=RATE,
        warmup_share=0.0,
        cooldown_share=1.0,
        points=STEPS // every,
        checkpoint_seconds=1e9,
    )
    shape = learner.model.config
    return settled(config, folder, head_width=shape.head_dim, width=shape.hidden_size)


def ours(gate: Gate, *, shape: str, method: dict[str, Any], windows: int, threads: int) -> None:
    """Train with our loop."""
    prepare_process(threads)
    chosen = MethodConfig.model_validate({"embeddings": "none", **method})
    learner = Learner(build_base(NANO, SHAPES[shape], 0), chosen, word_ids(NANO), 0)
    stream = WindowStream(STREAM)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = _config(learner, stream, windows, folder)

        def on_point(point: Point) -> None:
            gate(point.metrics["train/loss"])

        nothing = WindowStream(STREAM).read(0)
        train(
            learner,
            StreamTask(stream, nothing, SkillConfig(name="correction")),
            config,
            folder=folder,
            seed=0,
            on_point=on_point,
        )


class Windows(Dataset[dict[str, torch.Tensor]]):
    """Windows as the Trainer reads them: what has no loss is labelled -100, documents are told by their positions."""

    def __init__(self, count: int, settings: StreamSettings = STREAM) -> None:
        tokens = WindowStream(settings).read(count)
        self.ids = torch.from_numpy(tokens.ids.astype(np.int64))
        targets = torch.from_numpy(correction_targets(tokens.kinds, masked=SkillConfig().masked))
        self.labels = torch.where(targets, self.ids, -100)
        self.positions = torch.arange(self.ids.shape[1]) - first_seen(self.ids, 1)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.labels[index], "position_ids": self.positions[index]}


class InOrder(Trainer):
    """A Trainer that reads its data in the order it lies in."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        data: Any = train_dataset or self.train_dataset
        return SequentialSampler(data)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        """Keep the loss: reading it from the log would cost a log entry a step."""
        found = super().compute_loss(model, inputs, *args, **options)
        self.last_loss = found[0] if isinstance(found, tuple) else found
        return found


class AtGate(TrainerCallback):
    """Tells the gate of every step."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.trainer: InOrder | None = None

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Wait at the gate."""
        assert self.trainer is not None
        self.gate(float(self.trainer.last_loss.detach()))


def adamw(model: Any, lr: float) -> torch.optim.AdamW:
    """Return the optimiser of what is trained of `model`, with the settings of ours."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=lr, betas=BETAS, eps=EPSILON, weight_decay=0.0, fused=True)


def arguments_of(folder: Path, windows: int, steps: int, **options: Any) -> TrainingArguments:
    """Return the arguments of a Trainer that does nothing beside training."""
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=windows,
        max_steps=steps,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        **options,
    )


def hf_trainer(
    gate: Gate,
    *,
    shape: str,
    method: dict[str, Any],
    windows: int,
    threads: int,
    bf16: bool = False,
    compiled: bool = False,
    attention: str = "sdpa",
) -> None:
    """Train with transformers' Trainer, and with peft for LoRA."""
    torch.set_num_threads(threads)
    model: Any = build_base(NANO, SHAPES[shape], 0)
    model.set_attn_implementation(attention)
    if method["name"] == "lora":
        # peft's own model, with the first values of ours.
        model = attach(model, MethodConfig.model_validate({"embeddings": "none", **method}), [], 0)
    optimizer = adamw(model, RATE)
    callback = AtGate(gate)
    with tempfile.TemporaryDirectory() as folder:
        arguments = arguments_of(Path(folder), windows, STEPS, bf16=bf16, torch_compile=compiled)
        trainer = InOrder(
            model=model,
            args=arguments,
            train_dataset=Windows(200 * windows),
            optimizers=(optimizer, LambdaLR(optimizer, lambda step: (STEPS - step) / STEPS)),
            callbacks=[callback],
        )
        callback.trainer = trainer
        trainer.train()


EVERY = 10
"""Steps of each adapter in a unit: after these a bank tells the losses, as a trial does now and then."""


def one_by_one(gate: Gate, *, shape: str, ranks: list[int], windows: int, threads: int) -> None:
    """Train adapters one after another, a step of each in turn: what the bank does together."""
    prepare_process(threads)
    with tempfile.TemporaryDirectory() as name:
        slots = [_slot(Path(name, str(k)), shape, rank, windows, k) for k, rank in enumerate(ranks)]
        device = this_device()
        for slot in slots:
            slot.run.learner.begin(_dtype(slot), slot.run.config.attention, compiled=False)
            slot.run.learner.train()
        for step in itertools.count(1):
            for slot in slots:
                run = slot.run
                (batch,) = slot.task.batches(windows, slice(None), 0, device)
                loss = batch_loss(run.learner, batch)
                loss.backward()
                run.masters.take_gradients()
                torch.nn.utils.clip_grad_norm_(list(run.masters.values.values()), run.config.clip_norm)
                run.optimizers.step(run.rate())
                run.masters.write()
                run.step += 1
            if step % EVERY == 0:
                gate(float(loss.detach()))


def bank(gate: Gate, *, shape: str, ranks: list[int], windows: int, threads: int) -> None:
    """Train adapters together."""
    prepare_process(threads)
    with tempfile.TemporaryDirectory() as name:
        slots = [_slot(Path(name, str(k)), shape, rank, windows, k) for k, rank in enumerate(ranks)]
        device, last = this_device(), slots[-1]
        attention: Any = last.run.config.attention

        def on_point(point: Point) -> bool:
            if point.metrics:
                gate(point.metrics["train/loss"])
            return False

        last.on_point = on_point
        waiting = iter(slots)
        train_bank(
            build_base(NANO, SHAPES[shape], 0).to(device, _dtype(last)),  # pyright: ignore[reportArgumentType]
            lambda: next(waiting, None),
            lambda *_: None,
            size=len(slots),
            attention=attention,
        )


def _dtype(slot: Slot) -> torch.dtype:
    return torch.bfloat16 if slot.run.config.precision == "bf16" else torch.float32


def _slot(folder: Path, shape: str, rank: int, windows: int, seed: int) -> Slot:
    method = MethodConfig(name="lora", rank=rank, embeddings="none")
    learner = Learner(build_base(NANO, SHAPES[shape], 0), method, word_ids(NANO), seed)
    learner.place(this_device())
    stream = WindowStream(STREAM.model_copy(update={"seed": seed}))
    task = StreamTask(stream, WindowStream(STREAM).read(0), SkillConfig(name="correction"))
    folder.mkdir()
    config = _config(learner, stream, windows, folder.parent, every=EVERY)
    run = Run(learner, task, config, folder=folder, seed=seed)
    return Slot(run, task, lambda _: False)
