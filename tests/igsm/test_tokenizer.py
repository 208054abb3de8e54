"""The tokenizer that is saved with a checkpoint gives the ids that the streams use."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from peft_study.igsm.families import NANO
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.stream import Document, document_tokens
from peft_study.igsm.text import BACK, END, PAD, RIGHT, SPECIAL_WORDS, WRONG, document_words, join, prompt_words
from peft_study.igsm.tokenizer import build_tokenizer, word_ids
from peft_study.igsm.vocabulary import CHAINS, LETTERS, all_names

MakeDocument = Callable[..., Document]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    """Return the tokenizer as a stranger gets it: saved and loaded."""
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(NANO).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@given(
    op=st.integers(1, 6),
    rate=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 10**6),
    order=st.sampled_from(["pq", "qp"]),
)
def test_text_to_ids_to_text(
    make_document: MakeDocument, tokenizer: PreTrainedTokenizerFast, op: int, rate: float, seed: int, order: str
) -> None:
    document = make_document(op, rate=rate, seed=seed)
    words = document_words(document.problem, document.solution, document.mistakes, order)
    text = join([word.text for word in words])
    settings = StreamSettings.model_validate({"family": NANO, "order": order})
    ids = tokenizer(text)["input_ids"]
    assert ids == document_tokens(settings, document).ids.tolist()
    assert tokenizer.decode(ids) == text


def test_prompt_is_the_beginning_of_the_document(
    make_document: MakeDocument, tokenizer: PreTrainedTokenizerFast
) -> None:
    document = make_document(3)
    prompt = prompt_words(document.problem)
    words = [word.text for word in document_words(document.problem, document.solution, [])]
    assert prompt == [END, *words[: len(prompt) - 1]]
    assert tokenizer(join(prompt))["input_ids"] == [word_ids(NANO)[word] for word in prompt]


def test_every_word_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    for word, number in word_ids(NANO).items():
        assert tokenizer(word)["input_ids"] == [number], word


def test_a_word_outside_the_vocabulary_is_no_word_of_a_solution(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = word_ids(NANO)
    assert tokenizer("Define Zebra")["input_ids"] == [ids["Define"], ids[PAD]]


def test_ids_are_a_range_that_begins_with_the_special_words() -> None:
    ids = word_ids(NANO)
    assert list(ids.values()) == list(range(len(ids)))
    assert tuple(list(ids)[: len(SPECIAL_WORDS)]) == SPECIAL_WORDS
    assert {BACK, RIGHT, WRONG} <= set(SPECIAL_WORDS)
    assert (ids[PAD], ids[END]) == (0, 1)  # what build_base writes into the model's config


def test_names_are_unique_and_hold_no_grammar() -> None:
    names = all_names()
    assert len(names) == len(set(names)) == 4 * 4 * (1 + 5 * 20)
    assert len({name.lower() for name in names}) == len(names)
    assert not set(names) & set(LETTERS)
    for name in names:
        assert name[0].isupper()
        assert name.replace("-", "").isalpha()


def test_a_category_is_no_item_of_its_own_chain() -> None:
    for chain in CHAINS:
        items = {item for category in chain.categories for row in category.subcategories for item in row}
        assert not items & {category.name for category in chain.categories}
