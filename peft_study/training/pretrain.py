"""Pretraining of a base from scratch, resumable, with what a person needs to see on the way.

Loss is on solutions, and with a small weight on problems: predicting names there is what teaches a model of this
size to match names at all, which solutions need and hardly teach (LOG.md).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from peft_study.igsm.families import family_named
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.stream import Tokens, WindowStream, mean_length
from peft_study.igsm.text import Kind
from peft_study.igsm.tokenizer import word_ids
from peft_study.models.base import Architecture, build_base, load_model, read_pretraining
from peft_study.models.config import MethodConfig
from peft_study.models.learner import Learner
from peft_study.rng import derive_seed
from peft_study.skills.config import SkillConfig
from peft_study.telling import Point
from peft_study.training.batches import StreamTask, make_batch
from peft_study.training.config import TrainingConfig
from peft_study.training.machine import settled
from peft_study.training.run import TrainingSummary
from peft_study.training.supervised import train

SHOWN_KINDS = (
    Kind.DEFINE,
    Kind.NAME,
    Kind.REFERENCE,
    Kind.CONSTANT,
    Kind.OPERAND,
    Kind.OPERATOR,
    Kind.RESULT,
    Kind.BACK,
)


class PretrainConfig(BaseModel):
    """How a base is made. Both bases of a pair share everything but `base`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str = "nano"
    base: Literal["error-free", "retry"] = "error-free"
    seed: int = Field(default=0, ge=0)
    retry_rate: float = Field(default=0.5, ge=0, lt=1)
    """Mistakes of the retry base; the error-free base has none."""
    problem_weight: float = Field(default=0.2, ge=0)
    """Weight of the mean loss on problems, beside that on solutions; 0 for none."""
    start: str | None = None
    """Folder of a base to go on from, with its shape and on documents of its own; None: from scratch."""
    op_ratio: float = Field(default=0.65, gt=0, le=1)
    """How often a problem of the first ones has op + 1 operations, in relation to op. Small problems teach looking
    up, which large ones need (LOG.md). Families of the official law keep it."""
    op_ratio_share: float = Field(default=0.2, ge=0, le=1)
    """Share of the tokens that `op_ratio` holds for, before the family's own law; 0 for none."""
    architecture: Architecture = Architecture()
    training: TrainingConfig = TrainingConfig(
        tokens=26_214_400,
        batch_windows=16,
        lr=3e-3,
        optimizer="muon",
        muon_lr=0.02,
        warmup_share=0.01,
        cooldown_share=0.98,
        points=24,
        checkpoint_seconds=60,
    )


@torch.no_grad()
def accuracy_by_kind(learner: Learner, validation: Tokens, skill: SkillConfig) -> dict[str, float]:
    """Return the share of tokens that greedy prediction gets right, by kind of token."""
    device = next(learner.parameters()).device
    hits: dict[Kind, list[np.ndarray]] = {kind: [] for kind in SHOWN_KINDS}
    for start in range(0, len(validation.ids), 8):
        part = Tokens(validation.ids[start : start + 8], validation.kinds[start : start + 8])
        batch = make_batch(part, skill, device)
        right = (learner(batch.ids_BT, batch.where_BT, verdict=False).argmax(-1) == batch.answers_N).cpu().numpy()
        kinds = part.kinds[:, 1:][batch.where_BT[:, :-1].cpu().numpy()]
        for kind in SHOWN_KINDS:
            hits[kind].append(right[kinds == kind])
    shares = {kind: np.concatenate(values) for kind, values in hits.items()}
    return {f"accuracy/{kind.name.lower()}": float(values.mean()) for kind, values in shares.items() if len(values)}


def _legs(start: Path) -> int:
    """Return how many runs lie behind a base, so that each that goes on reads documents of its own."""
    legs, record = 0, read_pretraining(start)
    while record:
        legs, record = legs + 1, record["continued_from"]
    return legs


def _small_problems(settings: StreamSettings, config: PretrainConfig) -> tuple[StreamSettings, int] | None:
    """Return the law of the first documents, and how many they are; None where there is none."""
    tokens = config.op_ratio_share * config.training.tokens
    if settings.family.op_ratio is None or not tokens:
        return None
    law = settings.family.model_copy(update={"op_ratio": config.op_ratio})
    small = settings.model_copy(update={"family": law})
    return small, round(tokens / mean_length(small))


def pretrain(
    config: PretrainConfig,
    work: Path,
    *,
    on_point: Callable[[Point], None],
    generation_accuracy: Callable[[Learner], dict[str, float]] | None = None,
) -> tuple[Learner, TrainingSummary]:
    """Pretrain the base of `config`, going on from what lies in `work`; returns it with what it took."""
    family = family_named(config.family)
    rate = config.retry_rate if config.base == "retry" else 0.0
    legs = _legs(Path(config.start)) if config.start else 0
    seed = derive_seed(config.seed, "continued", legs) if legs else config.seed
    settings = StreamSettings(family=family, retry_rate=rate, seed=seed)
    validation = WindowStream(StreamSettings(family=family, retry_rate=rate, seed=config.seed, split="validation"))
    skill = SkillConfig(name="correction", mask=True, problem_weight=config.problem_weight)
    base = load_model(Path(config.start)) if config.start else build_base(family, config.architecture, config.seed)
    learner = Learner(base, MethodConfig(name="full"), word_ids(family), 0)
    measured = validation.read(32)

    def extra() -> dict[str, float]:
        metrics = accuracy_by_kind(learner, measured, SkillConfig(name="correction", mask=True))
        return metrics | (generation_accuracy(learner) if generation_accuracy else {})

    work.mkdir(parents=True, exist_ok=True)
    summary = train(
        learner,
        StreamTask(WindowStream(settings, first=_small_problems(settings, config)), measured, skill),
        settled(
            config.training, work, head_width=learner.model.config.head_dim, width=learner.model.config.hidden_size
        ),
        folder=work,
        seed=config.seed,
        on_point=on_point,
        extra_metrics=extra,
    )
    return learner, summary
