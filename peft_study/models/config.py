"""Which base a trial starts from and what of it is trained."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


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
    """`lora`: `rows` trains the rows of [BACK], [RIGHT], [WRONG] in both embeddings, over a pretrained model those of
    its new tokens; `lora_2r` adds a rank-2r update of the input embedding as the paper does, and the rows of the
    output; `none` trains neither."""

    @model_validator(mode="after")
    def _rank_fits(self) -> "MethodConfig":
        if self.name == "lora" and self.rank < 1:
            raise ValueError(f"method.rank must be at least 1 for method lora, but got {self.rank}")
        return self


class PretrainedConfig(BaseModel):
    """Any causal language model of transformers, and the form in which it is held."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    """Name on the Hub, or a local folder with safetensors weights and a tokenizer."""
    revision: str = ""
    """Branch, tag or commit on the Hub; empty for the newest."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the model is held and computes in. `auto`: bfloat16 on a GPU that has it, else float32; never the
    checkpoint's own, which is half precision for most and slow or wrong on many CPUs."""
    quantization: Literal["none", "nf4", "int8"] = "none"
    """How the linear layers but the output embedding are held: `nf4` in 4 bits (QLoRA, arXiv 2305.14314), `int8` in 8
    (LLM.int8(), arXiv 2208.07339). They compute in `dtype`; what is not quantised stays in it. On a CPU `int8` rounds
    activations too in evaluation, but not in training."""
    double_quantization: bool = True
    """`nf4`: quantise the scales of the blocks too, which saves 0.4 bits a weight."""
    storage_dtype: Literal["uint8", "float32", "bfloat16"] = "uint8"
    """`nf4`: the type that the packed bits pretend to be, for other programs that want that of the other weights; here
    `shard` leaves what is quantised whole."""
    cache_dequantized: bool = False
    """`nf4`: keep the dequantised weights instead of the packed ones. As fast and large as without quantisation, with
    its numbers: for small models and for measuring."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """What computes attention; `auto`: what transformers prefers for the architecture."""
    shard: bool = False
    """Of several processes: share weights, gradients and optimiser state out among them while training (FSDP2), instead
    of each holding all (DDP). Also on where accelerate was told to use FSDP. Quantised weights stay whole in each."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    new_tokens: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts that become one token each, where they are not already; their rows begin as the mean of all others and
    are trained by `method.embeddings`."""
    verdicts: tuple[str, str] = ("", "")
    """Right and wrong: texts whose first tokens are the two-way softmax of detection. Empty: [RIGHT] and [WRONG]
    where these are tokens, else the words right and wrong."""
    trust_remote_code: bool = False
    """Run the code that comes with the checkpoint: it can do whatever you can."""

    @field_validator("dtype", "storage_dtype", mode="before")
    @classmethod
    def _no_half(cls, value: object) -> object:
        if value in ("float16", "fp16", "half"):
            raise ValueError(f"{value} is refused: small gradients vanish in it; use bfloat16 or float32")
        return value

    @model_validator(mode="after")
    def _options_fit(self) -> "PretrainedConfig":
        if self.cache_dequantized and self.quantization != "nf4":
            raise ValueError(
                f"cache_dequantized must be off with quantization={self.quantization}, which has no 4-bit weights to "
                "dequantise; set quantization=nf4 or cache_dequantized=false"
            )
        if bool(self.verdicts[0]) != bool(self.verdicts[1]):
            raise ValueError(f"verdicts must be two texts, or both empty, but got {self.verdicts}")
        return self
