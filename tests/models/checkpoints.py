"""Tiny checkpoints of many architectures, randomly initialised, with a tiny tokenizer, as anyone would save them."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

END = "<|end|>"
TEXTS = (
    "Tom has 3 apples and buys 4 more. How many apples does Tom have?",
    "Tom has 3 + 4 = 7 apples. The step is right. The answer is 7.",
    "That is right. That is wrong. Is it right? It is wrong. Is it wrong? It is right.",
    "Ann had 9 plums and ate 5. How many plums are left? 9 - 5 = 3, no, that is wrong. 9 - 5 = 4.",
)
WORDS = 320
WIDTH, LAYERS, HEADS, MLP_WIDTH = 64, 2, 4, 128

_LLAMA: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": MLP_WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_GPT2: dict[str, Any] = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 128}

SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": _GPT2 | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "gpt_neox": _LLAMA | {"rotary_pct": 0.5},
    "llama": _LLAMA,
    "qwen2": _LLAMA | {"tie_word_embeddings": True},
    "qwen3": _LLAMA | {"head_dim": 16},
    "mistral": _LLAMA | {"sliding_window": 8, "head_dim": 16},
    "gemma2": _LLAMA
    | {"head_dim": 16, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0},
    "gemma3_text": _LLAMA | {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8},
    "phi3": _LLAMA,
    "bloom": {"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS},
    "falcon": _LLAMA | {"new_decoder_architecture": False, "multi_query": True},
    "opt": {
        "hidden_size": WIDTH,
        "word_embed_proj_dim": WIDTH,
        "ffn_dim": MLP_WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 128,
    },
    "mixtral": _LLAMA | {"num_local_experts": 2, "num_experts_per_tok": 1},
    "mamba": {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "state_size": 8},
    "phi": _LLAMA,
}
"""By `model_type`: what makes its config tiny."""


def make_tokenizer(*, words: int = WORDS) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE of `words` words with an end token and, like many, no pad token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=words, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END)


def make_checkpoint(kind: str, folder: Path, *, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """Write a tiny checkpoint of `kind` to `folder` and return that; the same kind gives the same weights."""
    tokenizer = make_tokenizer()
    config = AutoConfig.for_model(
        kind,
        **SHAPES[kind],
        vocab_size=WORDS,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
    )
    for name, value in changes.items():
        setattr(config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        with torch.no_grad():
            # Larger than a fresh model's, so that positions and documents change what comes out.
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    parameter.mul_(4.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
