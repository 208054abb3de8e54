"""What a trained model is measured on."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class EvaluationConfig(BaseModel):
    """Sizes and sources of the evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: Literal["validation", "test"] = "test"
    """Which problems; a search may only ask for validation."""
    n: int = Field(default=512, ge=1)
    """Problems of a cell."""
    seed: int = 0
    """Seed of the problems, the same for all trials so that comparisons are paired."""
    num_beams: int = Field(default=1, ge=1)
    """Solutions are greedy with 1; with more they come from a beam search that samples, as in Part 2.2 (beam 4)."""
    loss_windows: int = Field(default=32, ge=1)
    """Windows of the validation stream that `loss` is measured on."""
