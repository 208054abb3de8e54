"""Mistakes written by a large model: asked for one wrong step, its answer checked and kept.

    server = ServerConfig(model="Qwen/Qwen3-8B")                     # or any other server of the same kind
    rewriter = server_rewriter(server, gsm8k.FORM, Path("answers.jsonl"))
    documents(problems, MistakeConfig(kind="rewritten"), gsm8k.FORM, rewriter)
    print(rewriter.counts)                                           # what was asked, kept, and why not

Checked is the form of a step, not that it is wrong. Every answer goes to a file of JSON lines at once, so that a run
that was killed asks for no more than what is missing. One process a file.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Protocol

from peft_study.corpora.chat import ChatServer, ServerConfig
from peft_study.corpora.records import Problem
from peft_study.corpora.steps import Form, equations_of, same
from peft_study.errors import DataError
from peft_study.files import whole_lines
from peft_study.rng import derive_seed

TRIES = 3
"""Answers to one place before it is left without a mistake."""


class Rewriter(Protocol):
    """Writes mistakes."""

    def rewrite(self, problem: Problem, steps: list[str], at: int, rng_seed: int) -> str | None:
        """Return a plausible but wrong step in the place of `steps[at]`; None where none could be had."""
        ...


PROMPT = """\
Here is a problem and the beginning of its solution.

Problem: {question}

Solution so far:
{before}

The next step, which is right: {step}

Write a wrong version of that next step: one that a student could write by mistake, with an error of reasoning or of \
arithmetic in it. Keep its style, its length and its format. Give no final answer, do not say that it is wrong and do \
not correct it. Answer with that one step and nothing else."""


def prompt(problem: Problem, steps: list[str], at: int) -> str:
    """Return what a model is asked."""
    before = "\n".join(steps[:at]) or "(nothing yet)"
    return PROMPT.format(question=problem.question, before=before, step=steps[at])


def fault(answer: str, steps: list[str], at: int, form: Form) -> str:
    """Return why an answer cannot stand in the place of `steps[at]`; empty if it can."""
    if not answer:
        return "empty"
    if form.is_answer(answer):
        return "final answer"
    if len(form.cut(answer)) != 1 or not form.is_usable(answer):
        return "not one step"
    if any(same(answer, step) for step in steps):
        return "right step"
    # The same arithmetic in other words is no mistake.
    values = [[number.value for number in form.numbers(text)] for text in (answer, steps[at])]
    if equations_of(steps[at], form) and values[0] == values[1]:
        return "same numbers"
    return ""


class ModelRewriter:
    """Has a model write mistakes; threads can share it."""

    def __init__(self, model: str, ask: Callable[[str, int], str], form: Form, answers: Path | None = None) -> None:
        """Make one from a model's name, what answers a prompt with a seed, and the file that keeps answers."""
        self.model, self.ask, self.form, self.answers = model, ask, form, answers
        self.counts: Counter[str] = Counter()
        """`asked` of the model, `kept` from before, `written` mistakes, `given up` places, and each `fault`."""
        self._lock = Lock()
        self._known = _read_answers(answers) if answers else {}

    def rewrite(self, problem: Problem, steps: list[str], at: int, rng_seed: int) -> str | None:
        """Return a mistake in the place of `steps[at]`; None after `TRIES` answers that will not do."""
        text = prompt(problem, steps, at)
        for i in range(TRIES):
            answer = self._answer(text, derive_seed(rng_seed, i) % 2**31).strip()
            reason = fault(answer, steps, at, self.form)
            self._count(reason or "written")
            if not reason:
                return answer
        self._count("given up")
        return None

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def _answer(self, text: str, seed: int) -> str:
        key = (self.model, hashlib.sha256(text.encode()).hexdigest(), seed)
        with self._lock:
            known = self._known.get(key)
            self.counts["asked" if known is None else "kept"] += 1
        if known is not None:
            return known
        # What a model has thought aloud before it answers is no part of the answer.
        answer = self.ask(text, seed).rpartition("</think>")[2]
        with self._lock:
            self._known[key] = answer
            if self.answers:
                line = json.dumps(dict(zip(("model", "prompt", "seed", "answer"), (*key, answer), strict=True)))
                with self.answers.open("a", encoding="utf-8") as file:
                    file.write(f"{line}\n")
        return answer


def server_rewriter(config: ServerConfig, form: Form, answers: Path | None = None) -> ModelRewriter:
    """Return a rewriter that asks a server; `answers` is the file that keeps its answers, None for none."""
    return ModelRewriter(config.label, ChatServer(config).ask, form, answers)


def _read_answers(file: Path) -> dict[tuple[str, str, int], str]:
    """Return the answers in a file, and take off its end a line that a kill has left unfinished."""
    known = {}
    for number, line in enumerate(whole_lines(file), 1):
        try:
            row = json.loads(line)
            known[row["model"], row["prompt"], row["seed"]] = str(row["answer"])
        except (ValueError, LookupError, TypeError):
            raise DataError(
                f"{file}, line {number}: must be an answer of a model, but is {line[:40]!r}; delete that line"
            ) from None
    return known
