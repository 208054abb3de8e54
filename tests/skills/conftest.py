"""Small tokenizers, built here: bytes merged as in Qwen and Llama 3, with and without spaces in offsets; pieces with
the space before them, as in Llama 2 and Mistral; words."""

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AddedToken, PreTrainedTokenizerFast

LINES = [
    "the end.\nSo 3 + 4 = 7 it is.\n#### 7",
    "How many are left?\nThey have 5 - 2 = 3 left.\nWait, that last step is wrong.\n#### 3",
    "<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n",
]
WORDS = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
"""How Qwen splits text; `.` and a newline are one piece."""


@pytest.fixture(scope="session")
def bpe() -> Callable[..., Any]:
    """Return a function that makes a byte-level tokenizer; `bos` and `eos` say what it puts around a text itself."""

    def make(*, bos: bool = False, eos: bool = False, trim: bool = False, template: str = "") -> Any:
        special = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(WORDS, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=330,
            min_frequency=1,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(LINES, trainer)
        around = processors.TemplateProcessing(
            single=" ".join(["<s>"] * bos + ["$A"] + ["</s>"] * eos), special_tokens=[("<s>", 0), ("</s>", 1)]
        )
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=trim), around])
        made = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token="<s>",
            eos_token="</s>",
            pad_token="<pad>",
            additional_special_tokens=special[3:],
        )
        if template:
            made.chat_template = template
        return made

    return make


@pytest.fixture(scope="session")
def pieces_with_spaces() -> Callable[..., Any]:
    """Return a function that makes a tokenizer whose pieces begin with their space; some marks have what follows."""

    def make(template: str, *swallowing: str) -> Any:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
        trainer = trainers.BpeTrainer(
            vocab_size=200,
            min_frequency=1,
            special_tokens=["<unk>", "<s>", "</s>"],
            initial_alphabet=list("abcdefghijklmnopqrstuvwxyz?.\n"),
            show_progress=False,
        )
        tokenizer.train_from_iterator(["Yes", "No", "Is it right?", "Is it"] * 5, trainer)
        made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
        marks: list[str | AddedToken] = [AddedToken(mark, rstrip=True, normalized=False) for mark in swallowing]
        made.add_special_tokens({"additional_special_tokens": marks})
        made.chat_template = template
        return made

    return make


@pytest.fixture(scope="session")
def word_level() -> Any:
    """Return a tokenizer of words, which drops white space."""
    words = sorted({word for line in [*LINES, "a b c d e f g h i j"] for word in line.split()})
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["?", "</s>", *words])}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="?")
