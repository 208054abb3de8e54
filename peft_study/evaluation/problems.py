"""The problems a model is measured on, and a base's own solutions of them."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from transformers import Qwen3ForCausalLM

from peft_study.decoding.beam import beam_search
from peft_study.decoding.engine import generate
from peft_study.igsm.families import FamilySettings, Order
from peft_study.igsm.mistakes import MistakeKind
from peft_study.igsm.settings import Split, StreamSettings
from peft_study.igsm.stream import Document, draw_document
from peft_study.igsm.text import ANSWER, END, join, problem_words, prompt_words
from peft_study.igsm.tokenizer import word_ids
from peft_study.igsm.verify import Judgement, judge
from peft_study.rng import derive_seed
from peft_study.telling import OnShare, unheard


class Attempt(NamedTuple):
    """A model's solution of one problem."""

    tokens: list[int]
    """What was generated, up to and with [END]."""
    solution: str
    answer: str | None
    """None where the solution never came to its answer."""
    strict: Judgement
    published: Judgement


@lru_cache(maxsize=8)
def _drawn(settings: StreamSettings, n: int) -> tuple[Document, ...]:
    """Return the first `n` documents of `settings`.

    The trials of a sweep are measured on the same problems; to draw them anew took a third of an evaluation.
    """
    return tuple(draw_document(settings, index) for index in range(n))


def draw_problems(
    family: FamilySettings,
    op: int,
    n: int,
    *,
    split: Split,
    seed: int,
    order: Order = "pq",
    kind: MistakeKind = "retry",
    retry_rate: float = 0.0,
) -> Sequence[Document]:
    """Return `n` documents with exactly `op` operations; the same arguments give the same documents."""
    settings = StreamSettings(
        family=family, split=split, order=order, ops=(op,), kind=kind, retry_rate=retry_rate, seed=seed
    )
    return _drawn(settings, n)


def prompt_ids(document: Document, order: Order) -> list[int]:
    """Return the token ids of a problem's prompt."""
    ids = word_ids(document.problem.family)
    return [ids[word] for word in prompt_words(document.problem, order)]


def read_attempt(tokens: Sequence[int], document: Document, order: Order) -> Attempt:
    """Judge generated `tokens` as a solution of `document`'s problem."""
    family = document.problem.family
    words_by_id = list(word_ids(family))
    words = [words_by_id[token] for token in tokens]
    ended = bool(words) and words[-1] == END
    body = words[:-1] if ended else words
    solution, answer = body, None
    if ANSWER in body:
        at = body.index(ANSWER)
        solution, answer = body[:at], join(body[at + 1 :])
    text = join(solution)
    problem = join(problem_words(document.problem, order))
    strict, published = (
        judge(problem, text, answer if answer is not None else "", family.modulus, rule=rule)
        for rule in ("strict", "published")
    )
    if not ended:
        strict, published = strict.cut(), published.cut()
    return Attempt(list(tokens), text, answer, strict, published)


def solve_problems(
    model: Qwen3ForCausalLM,
    documents: Sequence[Document],
    order: Order,
    *,
    num_beams: int = 1,
    seed: int = 0,
    batch_size: int = 128,
    on_share: OnShare = unheard,
) -> list[Attempt]:
    """Return the model's solutions, judged: greedy ones, or with more beams those of a search that samples.

    `on_share` is told, as they come, what share of the problems is solved.
    """
    family = documents[0].problem.family
    prompts = [prompt_ids(document, order) for document in documents]
    end_id, max_length = word_ids(family)[END], 2 * family.max_tokens
    if num_beams == 1:
        outputs = generate(
            model, prompts, end_id=end_id, max_length=max_length, batch_size=batch_size, on_share=on_share
        )
    else:
        outputs = beam_search(
            model,
            prompts,
            num_beams=num_beams,
            end_id=end_id,
            max_length=max_length,
            batch_size=max(1, batch_size // num_beams),
            temperature=1.0,
            generator=torch.Generator(model.lm_head.weight.device).manual_seed(derive_seed(seed, "beams")),
            on_share=on_share,
        )
    return [read_attempt(tokens, document, order) for tokens, document in zip(outputs, documents, strict=True)]
