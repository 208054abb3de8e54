"""What a trial reads and what it learns from it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from peft_study.igsm.families import Order
from peft_study.igsm.mistakes import MistakeKind


class DataConfig(BaseModel):
    """The stream that both skills read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str = "nano"
    """Name of the problem family."""
    order: Order = "pq"
    """`pq`: problem, then question; `qp`: question, then problem."""
    kind: MistakeKind = "retry"
    """Kind of the mistakes (igsm/mistakes.py)."""
    retry_rate: float = Field(default=0.5, ge=0, lt=1)
    """Probability of a mistake before each solution sentence, geometric; 0 is the control: clean data."""


class SkillConfig(BaseModel):
    """What is learned from the stream."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["correction", "detection"] = "correction"
    """`correction`: loss on the solution; `detection`: right or wrong at every decision point."""
    mask: bool = True
    """Correction only: leave mistakes without loss."""
    mask_part: Literal["step", "name"] = "step"
    """Correction with `mask`: what has no loss, `Define X as` or X alone; the published code has both."""
    problem_weight: float = Field(default=0.0, ge=0)
    """Correction only: weight of the mean loss on the problem's tokens, beside that on the solution; 0 for none."""

    @property
    def masked(self) -> str:
        """What of a mistake has no loss: a key of `targets.MASKED`."""
        return self.mask_part if self.mask else "none"
