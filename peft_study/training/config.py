"""How a model is trained."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TrainingConfig(BaseModel):
    """The supervised loop. One quantity, `tokens`, decides when to stop and how far the rate has decayed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int = Field(default=524_288, ge=0)
    """Tokens read in all; 0 trains nothing."""
    batch_windows: int = Field(default=8, ge=1)
    """Windows of an optimiser step, of all processes together."""
    micro_windows: int = Field(default=0, ge=0)
    """Windows of one pass of a process; a step takes as many passes as it needs. 0: all in one."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of AdamW; None reads the tuned value for skill, method, targets and rank from the result
    of `sweeps/lr.yaml`."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon`: Muon for the matrices of the layers, AdamW for embeddings and vectors (pretraining)."""
    muon_lr: float = Field(default=0.02, gt=0)
    """Peak learning rate of Muon; unused with `adamw`."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of the matrices; 0 for none."""
    warmup_share: float = Field(default=0.05, ge=0, le=1)
    """Share of the steps in which the rate rises linearly."""
    cooldown_share: float = Field(default=0.95, gt=0, le=1)
    """Share of the steps, at the end, in which the rate falls linearly to 0."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest norm of the whole gradient."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What the model computes in; trained values are kept in fp32. `auto`: bf16 where it is measured to be faster."""
    attention: Literal["auto", "varlen", "sdpa", "eager"] = "auto"
    """`varlen`: our kernel for packed documents, on a CPU, needs a C++ compiler; `sdpa` and `eager` are those of
    transformers. `auto`: the one that is measured to be the fastest here; on a GPU `sdpa`."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the layers with torch.compile, which needs a C++ compiler (on a GPU a C compiler) and Python's headers.
    `auto`: where they are there and the run is long enough for it to pay (machine.COMPILED_STEPS)."""
    points: int = Field(default=12, ge=1)
    """How many times in a run the validation loss is measured and logged."""
    checkpoint_seconds: float = Field(default=20.0, ge=0)
    """Least seconds between checkpoints, which a killed run goes on from: 0 for one after every step. Where writing one
    takes long they are fewer, so that it costs a tenth of the time at most."""
