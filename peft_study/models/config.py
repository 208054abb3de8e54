"""Which base a trial starts from and what of it is trained."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class BaseConfig(BaseModel):
    """The pretrained checkpoint a trial starts from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["error-free", "retry"] = "error-free"
    """What the checkpoint was pretrained on."""
    seed: int = Field(default=0, ge=0)
    """Which base pair: both bases of a pair share seed and tokens."""
    path: str = ""
    """Folder of the checkpoint; empty for `checkpoints/<family>-<name>-seed<seed>`."""


Targets = Literal["qv", "attention", "mlp", "all-linear"]
Embeddings = Literal["none", "rows", "lora_2r"]


class MethodConfig(BaseModel):
    """What of the base is trained, and in what form."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["none", "pretrain", "full", "lora", "probe"] = "lora"
    """`none` and `pretrain` train nothing: the base as it is, and as a reference of full pretraining."""
    rank: int = Field(default=0, ge=0)
    """Rank of the low-rank update: `lora`, or the embedding update of `probe`; 0 where there is none."""
    lora_alpha: float = Field(default=0.0, ge=0)
    """Scale of the update, alpha / rank (alpha / sqrt(rank) with rslora); 0 means 2 x rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the low-rank update."""
    rslora: bool = False
    """Rank-stabilised scale (arXiv 2312.03732)."""
    targets: Targets = "all-linear"
    """`lora`: which matrices of each layer are adapted."""
    embeddings: Embeddings = "rows"
    """`lora`: `rows` trains the rows of [BACK], [RIGHT], [WRONG] in both embeddings; `lora_2r` adds a rank-2r
    update of the input embedding as the paper does, and the rows of the output; `none` trains neither."""

    @model_validator(mode="after")
    def _rank_fits(self) -> "MethodConfig":
        if self.name == "lora" and self.rank < 1:
            raise ValueError(f"method.rank must be at least 1 for method lora, but got {self.rank}")
        return self
