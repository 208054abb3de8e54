"""Documents as records of plain values: what the command line writes and what datasets are made of."""

import json
from collections.abc import Iterator
from typing import Any, TypedDict

from peft_study.igsm.parse import ParseError
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.splits import hash_of_template
from peft_study.igsm.stream import Document, draw_document
from peft_study.igsm.text import join, problem_words, solution_words
from peft_study.igsm.verify import judge


class MistakeRecord(TypedDict):
    """A mistake by its place among the sentences of the solution as written, from 0."""

    sentence: int
    kind: str
    computable: bool


class DocumentRecord(TypedDict):
    """One problem with its solution."""

    problem: str
    solution: str
    answer: str
    modulus: int
    op: int
    ip: int
    template_hash: str
    mistakes: list[MistakeRecord]


def document_record(settings: StreamSettings, document: Document) -> DocumentRecord:
    """Return `document` as plain values; texts begin with a space, as words do in the paper."""
    problem = document.problem
    words = solution_words(problem, document.solution, document.mistakes)
    return DocumentRecord(
        problem=join(problem_words(problem, settings.order)),
        solution=join([word.text for word in words]),
        answer=str(document.solution.answer),
        modulus=problem.family.modulus,
        op=problem.op,
        ip=len(problem.formulas),
        template_hash=f"{hash_of_template(problem):016x}",
        mistakes=[
            MistakeRecord(sentence=mistake.before + i, kind=settings.kind, computable=mistake.computable)
            for i, mistake in enumerate(document.mistakes)
        ],
    )


def records(settings: StreamSettings, count: int, start: int = 0) -> Iterator[DocumentRecord]:
    """Yield `count` documents of a stream as records, from document `start` on."""
    for index in range(start, start + count):
        yield document_record(settings, draw_document(settings, index))


def verdict_record(line: str, modulus: int, rule: str) -> dict[str, Any]:
    """Return the verdict on one JSON line with `problem`, `solution`, `answer` and perhaps `modulus`.

    A line that cannot be read is a verdict too: `ok` is None and `reason` says why.
    """
    if not line.strip():
        return _unread("the line is empty")
    try:
        given = json.loads(line)
        problem, solution = str(given["problem"]), str(given["solution"])
        found = given.get("modulus")
        modulus = modulus if found is None else found
        if type(modulus) is not int or modulus < 1:
            raise ValueError(f"modulus must be a whole number from 1, but got {modulus}")
        answer = None if given.get("answer") is None else str(given["answer"])
        judgement = judge(problem, solution, answer, modulus, rule=rule)
    except KeyError as error:
        return _unread(f"the line has no {error}")
    except RecursionError:
        return _unread("the line is nested too deeply")
    except (ValueError, TypeError, AttributeError, ParseError) as error:
        return _unread(" ".join(str(error).split()))
    return {
        "ok": judgement.ok,
        "first_wrong_step": judgement.first_wrong_step,
        "verdict": str(judgement.outcome),
        "reason": judgement.reason,
        "retries": judgement.retries,
        "unnecessary": judgement.unnecessary,
        "op": solution.count(";"),
        "steps": [str(verdict) for verdict in judgement.steps],
    }


def _unread(reason: str) -> dict[str, Any]:
    nothing = dict.fromkeys(("ok", "first_wrong_step", "retries", "unnecessary", "op", "steps"))
    return nothing | {"verdict": "unreadable", "reason": reason}
