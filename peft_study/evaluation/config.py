"""What a trained model is measured on."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from peft_study.sandbox.jobs import Limits


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


class NaturalEvaluationConfig(BaseModel):
    """Sizes and sources of the evaluation of a pretrained model on texts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: Literal["validation", "test"] = "validation"
    """Which problems. `test` is for figures that are reported: what chooses may not see them."""
    n: int = Field(default=512, ge=1)
    """Problems that are solved, and documents that detection is measured on, at most."""
    seed: int = 0
    """Seed of which these are, where there are more, and of what is sampled; the same for all trials."""
    max_new_tokens: int = Field(default=512, ge=1)
    """Tokens that a solution may have."""
    temperature: float = Field(default=0.0, ge=0)
    """0 writes the likeliest token each time; else tokens are drawn, and what is drawn depends on `batch` too."""
    batch: int = Field(default=0, ge=0)
    """Solutions that are written at once, and documents that are scored at once. 0: 8 to 64, as many as keep their keys
    and values in a gigabyte."""
    loss_windows: int = Field(default=32, ge=1)
    """Windows of validation documents that `loss` is measured on."""
    allow_untrusted_code: bool = False
    """Run the programs that the model writes, each in a sandbox on this machine; `humaneval` and `mbpp+` need it."""
    limits: Limits = Limits()
    """What one such program may use."""
    workers: int = Field(default=1, ge=1)
    """Programs that run at once."""
    baseline: bool = True
    """Have the base solve the problems too, before training: for gains, and for detection in its own solutions."""
