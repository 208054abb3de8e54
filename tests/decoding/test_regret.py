"""The perfect detector on a model that was taught to begin with the wrong step two times out of three."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import Qwen3ForCausalLM

from peft_study.decoding.engine import generate
from peft_study.decoding.regret import generate_with_regret
from peft_study.evaluation.problems import prompt_ids, read_attempt
from peft_study.igsm.families import NANO
from peft_study.igsm.stream import Document
from peft_study.igsm.text import END, join, problem_words, solution_words
from peft_study.igsm.tokenizer import word_ids
from peft_study.igsm.verify import Verdict
from peft_study.models.learner import Learner

LIMIT = 200


@pytest.fixture(scope="module")
def taught(make_learner: Callable[..., Learner], hand_document: Document) -> Qwen3ForCausalLM:
    """Return a model that knows one problem, and two solutions: the right one, and one with its steps turned."""
    ids, document = word_ids(NANO), hand_document
    words = [word.text for word in solution_words(document.problem, document.solution, [])]
    cut = words.index(".") + 1
    tail = ["[ANSWER]", "2", END]
    prompt = prompt_ids(document, "pq")
    right, wrong = ([*part, *tail] for part in (words, words[cut:] + words[:cut]))
    batch = torch.tensor([[*prompt, *(ids[word] for word in solution)] for solution in (right, wrong, wrong)])
    model = make_learner().model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(140):
        logits = model(input_ids=batch).logits[:, len(prompt) - 1 : -1]
        loss = functional.cross_entropy(logits.flatten(0, 1), batch[:, len(prompt) :].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.03  # what is left is the choice of the first step
    return model.eval()


@pytest.fixture
def regret(taught: Qwen3ForCausalLM, hand_document: Document) -> Callable[..., list[Any]]:
    """Return a function that solves the problem with the detector, `rows` times in one batch."""

    def solve(*, rows: int = 1, **options: Any) -> list[Any]:
        options = {"end_id": word_ids(NANO)[END], "max_length": LIMIT} | options
        problem = join(problem_words(hand_document.problem))
        prompts = [prompt_ids(hand_document, "pq")] * rows
        outputs = generate_with_regret(taught, prompts, [problem] * rows, list(word_ids(NANO)), **options)
        return [read_attempt(output, hand_document, "pq") for output in outputs]

    return solve


def test_greedy_alone_goes_wrong(taught: Qwen3ForCausalLM, hand_document: Document) -> None:
    prompt = prompt_ids(hand_document, "pq")
    (output,) = generate(taught, [prompt], end_id=word_ids(NANO)[END], max_length=LIMIT)
    attempt = read_attempt(output, hand_document, "pq")
    assert (attempt.strict.outcome, attempt.strict.first_wrong_step) == (Verdict.NOT_COMPUTABLE, 0)


def test_wrong_choices_are_taken_back_until_one_is_right(regret: Callable[..., list[Any]]) -> None:
    attempts = regret(rows=6, max_retries=50)
    assert [attempt.strict.outcome for attempt in attempts] == [Verdict.RIGHT] * 6
    assert all(attempt.strict.retries == 0 and attempt.answer.strip() == "2" for attempt in attempts)


def test_same_seed_same_outputs(regret: Callable[..., list[Any]]) -> None:
    assert regret(rows=3, max_retries=1, seed=4) == regret(rows=3, max_retries=1, seed=4)


def test_one_retry_helps_a_third_of_the_time(regret: Callable[..., list[Any]]) -> None:
    attempts = regret(rows=60, max_retries=1)
    right = sum(attempt.strict.ok for attempt in attempts)
    assert 8 <= right <= 34  # a third of 60, within three and a half standard deviations
    wrong = [attempt.strict.outcome for attempt in attempts if not attempt.strict.ok]
    # Sampling may, rarely, leave the grammar of so small a model.
    assert wrong.count(Verdict.NOT_COMPUTABLE) >= len(wrong) - 3


def test_without_retries_it_is_greedy(
    regret: Callable[..., list[Any]], taught: Qwen3ForCausalLM, hand_document: Document
) -> None:
    prompt = prompt_ids(hand_document, "pq")
    expected = generate(taught, [prompt], end_id=word_ids(NANO)[END], max_length=LIMIT)
    assert [attempt.tokens for attempt in regret(max_retries=0)] == expected


def test_length_limit_ends_a_row(regret: Callable[..., list[Any]], hand_document: Document) -> None:
    limit = len(prompt_ids(hand_document, "pq")) + 12
    (attempt,) = regret(max_length=limit)
    assert attempt.strict.outcome == Verdict.TRUNCATED
    assert len(attempt.tokens) <= 12
