"""The word-level tokenizer: one id a word, the same for our streams and for `transformers`."""

from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from peft_study.igsm.families import FamilySettings
from peft_study.igsm.text import END, LEANING_SIGNS, PAD, PHRASES, SIGNS, SPECIAL_WORDS, WORD_PATTERN
from peft_study.igsm.vocabulary import LETTERS, all_names


@cache
def _word_ids(modulus: int, letter_pool: int, chains: int, subcategories: int, names: int) -> dict[str, int]:
    numbers = [str(number) for number in range(modulus)]
    words = [
        *SPECIAL_WORDS,
        *PHRASES,
        *SIGNS,
        *numbers,
        *LETTERS[:letter_pool],
        *all_names(chains, subcategories, names),
    ]
    return {word: i for i, word in enumerate(words)}


def word_ids(family: FamilySettings) -> dict[str, int]:
    """Return the id of every word of `family`: special words, grammar, numbers, letters, names. Do not change it."""
    return _word_ids(family.modulus, family.letter_pool, family.chains, family.subcategories, family.names)


def build_tokenizer(family: FamilySettings) -> PreTrainedTokenizerFast:
    """Return the tokenizer of `family`, to be saved beside a checkpoint."""
    # A word outside the vocabulary has no honest id; [PAD] is the one that no solution can contain.
    tokenizer = Tokenizer(models.WordLevel(dict(word_ids(family)), unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="removed", invert=True)
    # Text is words with a space before each, but for the signs that lean on the word before (`text.join`).
    lean = [decoders.Replace(" " + sign, sign) for sign in LEANING_SIGNS]
    tokenizer.decoder = decoders.Sequence([decoders.Replace(Regex("^"), " "), decoders.Fuse(), *lean])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        bos_token=END,
        model_max_length=family.max_tokens,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
