"""What compiled code needs to know of a stream, as numbers: rules, token ids and hash codes."""

import hashlib
from functools import cache

import numpy as np

from peft_study.igsm.chance import mix
from peft_study.igsm.families import FamilySettings
from peft_study.igsm.fast.layout import Lexicon, Rules
from peft_study.igsm.mistakes import MISTAKE_KINDS
from peft_study.igsm.problem import MAX_DRAWS
from peft_study.igsm.settings import SPLIT_BINS, StreamSettings, op_law
from peft_study.igsm.text import ANSWER, BACK, END, PROBLEM, SOLUTION
from peft_study.igsm.tokenizer import word_ids
from peft_study.igsm.vocabulary import CHAINS, LETTERS

GRAMMAR = (
    END, PROBLEM, SOLUTION, ANSWER, BACK, "The number of each", "each", "'s", "equals", "more than", "times as much as",
    "the sum of", "the difference of", ",", "and", ".", "How many", "does", "have", "?", "Define", "as", ";", "so", "=",
    "+", "-", "*",
)  # fmt: skip
"""The words of the grammar, in the order in which fast/layout.py numbers them (W_END, ...)."""


@cache
def word_code(word: str) -> int:
    """Return the 64 bits that a word counts as in the hash of a problem, whatever its token id."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")


def hash_words(words: list[str]) -> int:
    """Return the 64-bit hash of a sequence of words."""
    word = 0
    for text in words:
        word = mix(word ^ word_code(text))
    return word


_CATEGORIES = {category.name for chain in CHAINS for category in chain.categories}
_ITEMS = {name for chain in CHAINS for category in chain.categories for row in category.subcategories for name in row}


def template_word(word: str) -> str:
    """Return what a word of a solution, letters aside, is in its template: names and numbers are forgotten."""
    if word in _CATEGORIES:
        return "Inter"
    if word in _ITEMS:
        return "Inst"
    return "0" if word.isdigit() else word


@cache
def lexicon(family: FamilySettings) -> Lexicon:
    """Return the tables of a family's words."""
    ids = word_ids(family)
    items = np.zeros((len(CHAINS), 4, 5, 20), np.int64)
    categories = np.zeros((len(CHAINS), 4), np.int64)
    for c, chain in enumerate(CHAINS[: family.chains]):
        for k, category in enumerate(chain.categories):
            categories[c, k] = ids[category.name]
            for s, row in enumerate(category.subcategories[: family.subcategories]):
                items[c, k, s, : family.names] = [ids[name] for name in row[: family.names]]
    return Lexicon(
        words=np.array([ids[word] for word in GRAMMAR], np.int64),
        numbers=np.array([ids[str(number)] for number in range(family.modulus)], np.int64),
        letters=np.array([ids[letter] for letter in LETTERS[: family.letter_pool]], np.int64),
        categories=categories,
        items=items,
        codes=np.array([word_code(word) for word in ids], np.uint64),
        template_codes=np.array([word_code(template_word(word)) for word in ids], np.uint64),
        letter_codes=np.array([word_code(f"letter {i}") for i in range(family.letter_pool)], np.uint64),
    )


def rules(settings: StreamSettings) -> Rules:
    """Return the settings of a stream as numbers."""
    family = settings.family
    ops, weights = op_law(settings)
    bins = SPLIT_BINS[settings.split]
    return Rules(
        modulus=family.modulus,
        op_max=family.op_max,
        official=not len(ops),
        possible=np.ones(family.op_max + 1, np.bool_),
        ops=np.array(ops, np.int64),
        weights=np.array(weights, np.float64),
        middle=family.style == "middle",
        ip_max=family.ip_max,
        parents_max=family.parents_max,
        abstract_parents_max=family.abstract_parents_max or 0,
        empty_abstract=family.empty_abstract,
        sizes=np.array(family.sizes, np.int64),
        chains=family.chains,
        subcategories=family.subcategories,
        names=family.names,
        letter_pool=family.letter_pool,
        by_template=family.split_by == "template",
        low=bins.start,
        high=bins.stop,
        draws=MAX_DRAWS["given" if ops else "official"],
        tries=family.shape_tries,
        question_first=settings.order == "qp",
        mistake_kind=MISTAKE_KINDS.index(settings.kind),
        retry_rate=settings.retry_rate,
    )
