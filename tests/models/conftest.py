"""Every method that trains something, a batch for each skill, and a few steps of training."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from peft_study.igsm.families import NANO
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.stream import WindowStream
from peft_study.models.attention import additive_mask, first_seen
from peft_study.models.config import MethodConfig
from peft_study.models.learner import Learner
from peft_study.skills.config import SkillConfig
from peft_study.training.batches import batch_loss, make_batch

METHODS = {
    "full": MethodConfig(name="full"),
    "probe": MethodConfig(name="probe"),
    "probe-r2": MethodConfig(name="probe", rank=2),
    **{
        f"lora-{targets}-{embeddings}": MethodConfig.model_validate(
            {"name": "lora", "rank": 2, "targets": targets, "embeddings": embeddings}
        )
        for targets in ("qv", "attention", "mlp", "all-linear")
        for embeddings in ("none", "rows", "lora_2r")
    },
    "lora-rslora": MethodConfig(name="lora", rank=2, rslora=True),
}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> MethodConfig:
    """Return each method in turn."""
    return METHODS[request.param]


@pytest.fixture(scope="session")
def skill_of() -> Callable[[MethodConfig], SkillConfig]:
    """Return the function that says which skill a method is tested on: a probe can only detect."""

    def skill(method: MethodConfig) -> SkillConfig:
        return SkillConfig(name="detection" if method.name == "probe" else "correction")

    return skill


@pytest.fixture(scope="session")
def batches() -> dict[str, Any]:
    """Return a batch of two windows for each skill, mistakes included."""
    tokens = WindowStream(StreamSettings(family=NANO, retry_rate=0.5)).read(2)
    return {
        name: make_batch(tokens, SkillConfig(name=name), torch.device("cpu")) for name in ("correction", "detection")
    }


@pytest.fixture(scope="session")
def masks_of_transformers() -> Callable[[torch.Tensor, Learner], dict[str, torch.Tensor]]:
    """Return the function that says what each position sees in the words of transformers, by type of layer."""

    def masks(ids_BT: torch.Tensor, learner: Learner) -> dict[str, torch.Tensor]:
        config, dtype = learner.model.config, learner.model.dtype
        windows = {"full_attention": 0, "sliding_attention": config.sliding_window or 0}
        return {
            name: additive_mask(first_seen(ids_BT, learner.end_id, window), dtype) for name, window in windows.items()
        }

    return masks


@pytest.fixture(scope="session")
def take_steps(batches: dict[str, Any]) -> Callable[..., list[float]]:
    """Return a function that trains a learner on one batch and returns the loss before each step."""

    def take(learner: Learner, skill: SkillConfig, *, steps: int = 4, lr: float = 3e-3) -> list[float]:
        optimizer = torch.optim.AdamW(learner.trainable().values(), lr=lr, weight_decay=0.0)
        losses = []
        for _ in range(steps):
            loss = batch_loss(learner, batches[skill.name])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    return take
