"""Attempts: what is made of generated tokens, ends of every kind included."""

from collections.abc import Callable

import pytest

from peft_study.evaluation.problems import Attempt, draw_problems, prompt_ids, read_attempt, solve_problems
from peft_study.igsm.families import NANO
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.splits import split_of
from peft_study.igsm.stream import Document, document_tokens
from peft_study.igsm.text import document_words, split
from peft_study.igsm.tokenizer import word_ids
from peft_study.igsm.verify import Verdict
from peft_study.models.learner import Learner

FIRST = "Define Caldera's Highwall as c; so c = 3. "
BACK = "Define Elvaria's Highwall as [BACK]. "
SECOND = "Define Elvaria's Eaglecrag as d; so d = 4 * c = 4 * 3 = 2. "


@pytest.fixture
def read(hand_document: Document) -> Callable[[str], Attempt]:
    """Return a function that reads a text as what a model has generated for the document made by hand."""
    ids = word_ids(NANO)
    return lambda text: read_attempt([ids[word] for word in split(text)], hand_document, "pq")


def test_clean_tokens_are_right(read: Callable[[str], Attempt]) -> None:
    attempt = read(FIRST + BACK + SECOND + "[ANSWER] 2 [END]")
    assert attempt.strict.ok
    assert attempt.published.ok
    assert attempt.strict.retries == 1
    assert attempt.answer == " 2"
    assert attempt.solution == f" {FIRST}{BACK}{SECOND}".rstrip()


@pytest.mark.parametrize(
    ("text", "verdict", "step"),
    [
        (FIRST + SECOND + "[ANSWER] 3 [END]", Verdict.ANSWER, 2),
        (FIRST + SECOND + "[ANSWER] 2 2 [END]", Verdict.ANSWER, 2),
        (FIRST + SECOND + "[ANSWER] [END]", Verdict.ANSWER, 2),
        (FIRST + SECOND + "[END]", Verdict.ANSWER, 2),
        (FIRST + "[ANSWER] 3 [END]", Verdict.EARLY_STOP, 1),
        ("[END]", Verdict.EARLY_STOP, 0),
        (SECOND + "[ANSWER] 2 [END]", Verdict.NOT_COMPUTABLE, 0),
        (FIRST + "Define Elvaria's [END]", Verdict.UNPARSABLE, 1),
        (FIRST + "[PROBLEM] " + SECOND + "[ANSWER] 2 [END]", Verdict.UNPARSABLE, 1),
        # Without [END] the length limit has cut it, wherever it was.
        (FIRST + SECOND + "[ANSWER] 2", Verdict.TRUNCATED, 2),
        (FIRST + SECOND + "[ANSWER]", Verdict.TRUNCATED, 2),
        (FIRST + "Define Elvaria's", Verdict.TRUNCATED, 1),
        (FIRST, Verdict.TRUNCATED, 1),
        ("", Verdict.TRUNCATED, 0),
        (BACK * 20, Verdict.TRUNCATED, 20),
        # ... but a step that was wrong before stays what it was.
        (SECOND + FIRST + "Define", Verdict.NOT_COMPUTABLE, 0),
        (FIRST + FIRST + "Define", Verdict.REPEATED, 1),
    ],
)
def test_ends_of_every_kind(read: Callable[[str], Attempt], text: str, verdict: Verdict, step: int) -> None:
    for judgement in (read(text).strict, read(text).published):
        assert (judgement.outcome, judgement.first_wrong_step) == (verdict, step)


@pytest.mark.parametrize("order", ["pq", "qp"])
@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_documents_of_the_stream_are_right(order: str, rate: float) -> None:
    options = {"family": NANO, "order": order}
    for document in draw_problems(NANO, 5, 30, split="validation", seed=1, retry_rate=rate):
        tokens = document_tokens(StreamSettings.model_validate(options), document).ids.tolist()
        prompt = prompt_ids(document, "qp" if order == "qp" else "pq")
        assert [word_ids(NANO)["[END]"], *tokens][: len(prompt)] == prompt
        attempt = read_attempt(tokens[len(prompt) - 1 :], document, "qp" if order == "qp" else "pq")
        assert attempt.strict.ok
        assert attempt.strict.retries == len(document.mistakes)


def test_problems_are_the_same_each_time_and_what_was_asked_for() -> None:
    documents = draw_problems(NANO, 6, 20, split="test", seed=3)
    assert documents == draw_problems(NANO, 6, 20, split="test", seed=3)
    assert documents[:5] == draw_problems(NANO, 6, 5, split="test", seed=3)
    assert documents != draw_problems(NANO, 6, 20, split="test", seed=4)
    assert {document.problem.op for document in documents} == {6}
    assert {split_of(document.problem) for document in documents} == {"test"}
    with_mistakes = draw_problems(NANO, 6, 20, split="test", seed=3, retry_rate=0.3)
    assert [document.problem for document in with_mistakes] == [document.problem for document in documents]


def test_a_model_is_given_the_prompt_and_judged_on_what_it_says(make_learner: Callable[..., Learner]) -> None:
    documents = draw_problems(NANO, 1, 2, split="test", seed=0)
    attempts = solve_problems(make_learner().model, documents, "pq")
    for document, attempt in zip(documents, attempts, strict=True):
        assert attempt == read_attempt(attempt.tokens, document, "pq")
        assert not attempt.strict.ok  # a random model
        assert len(prompt_ids(document, "pq")) + len(attempt.tokens) <= 2 * NANO.max_tokens


def test_beams_are_sampled_with_a_seed(make_learner: Callable[..., Learner]) -> None:
    documents, model = draw_problems(NANO, 1, 2, split="test", seed=0), make_learner().model

    def outputs(num_beams: int, seed: int) -> list[list[int]]:
        return [attempt.tokens for attempt in solve_problems(model, documents, "pq", num_beams=num_beams, seed=seed)]

    assert outputs(2, 0) == outputs(2, 0)
    assert len({str(outputs(*asked)) for asked in ((1, 0), (2, 0), (2, 1))}) == 3
    assert outputs(1, 0) == outputs(1, 1)


def test_prompt_is_all_that_is_given(hand_document: Document) -> None:
    words = [word.text for word in document_words(hand_document.problem, hand_document.solution, [])]
    prompt = prompt_ids(hand_document, "pq")
    assert prompt == [word_ids(NANO)[word] for word in ["[END]", *words[: words.index("[SOLUTION]") + 1]]]
