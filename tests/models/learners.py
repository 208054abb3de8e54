"""Learners on tiny checkpoints, a batch for each skill, and what strangers make of what is saved."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from peft_study.models.config import MethodConfig, PretrainedConfig
from peft_study.models.pretrained import PretrainedLearner
from peft_study.models.quantize import quantization_config
from peft_study.training.batches import Batch, batch_loss, next_words
from tests.models.checkpoints import WORDS

KINDS = ("gpt2", "gpt_neox", "llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3")
QUANTIZATIONS = ("none", "nf4", "int8")
CPU = torch.device("cpu")

IDS = torch.randint(1, WORDS, (2, 24), generator=torch.Generator().manual_seed(0))
EVERYWHERE = torch.ones_like(IDS, dtype=torch.bool)
TARGETS = EVERYWHERE & (torch.arange(24) > 0)


def config_of(folder: Path, **settings: Any) -> PretrainedConfig:
    return PretrainedConfig.model_validate({"name": str(folder)} | settings)


def method_of(name: str = "lora", **settings: Any) -> MethodConfig:
    return MethodConfig.model_validate({"name": name, "rank": 4 if name == "lora" else 0} | settings)


def make(
    folder: Path, method: MethodConfig | None = None, *, saved: Path | None = None, **settings: Any
) -> PretrainedLearner:
    return PretrainedLearner(config_of(folder, **settings), method or method_of(), 0, saved=saved)


@torch.no_grad()
def logits_of(learner: PretrainedLearner, ids: Tensor = IDS) -> Tensor:
    """Return the logits [B, T, V] of an evaluation."""
    return learner.eval()(ids, torch.ones_like(ids, dtype=torch.bool), verdict=False).view(*ids.shape, -1)


def take_steps(
    learner: PretrainedLearner, batch: Batch | None = None, *, steps: int = 4, lr: float = 1e-2
) -> list[float]:
    """Train on one batch and return the loss before each step."""
    batch, losses = batch or next_words(IDS, TARGETS, CPU), []
    optimizer = torch.optim.AdamW(learner.trainable().values(), lr=lr, weight_decay=0.0)
    learner.train()
    for _ in range(steps):
        loss = batch_loss(learner, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def verdict_batch() -> Batch:
    where = torch.zeros_like(EVERYWHERE)
    where[:, 3::5] = True
    return Batch(IDS, where, torch.arange(int(where.sum())) % 2, verdict=True)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers, those that are not saved included."""
    tensors = dict(model.state_dict()) | dict(model.named_buffers())
    return {name: value.detach().clone() for name, value in tensors.items()}


def stranger(folder: Path, quantization: str = "none") -> Any:
    """Return the base as plain transformers loads it."""
    options: dict[str, Any] = {"dtype": torch.float32}
    if quantization != "none":
        options["quantization_config"] = quantization_config(
            config_of(folder, quantization=quantization), torch.float32
        )
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


TIED_WARNING = "ignore:Model has `tie_word_embeddings=True` and a tied layer"
"""Peft's, to strangers."""
