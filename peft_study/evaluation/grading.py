"""Written solutions graded, each corpus by its own rule, with the reason in a line."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from peft_study.corpora import gsm8k, math
from peft_study.corpora.code import CodeProblem, grade_programs
from peft_study.corpora.config import CODE
from peft_study.corpora.records import Problem
from peft_study.corpora.sampled import Grader
from peft_study.corpora.steps import Form
from peft_study.errors import ConfigError
from peft_study.evaluation.config import NaturalEvaluationConfig
from peft_study.evaluation.problems import Attempt
from peft_study.evaluation.writing import Written
from peft_study.igsm.text import ANSWER
from peft_study.igsm.verify import Verdict, judge
from peft_study.records import Grade
from peft_study.sandbox.sandbox import Sandbox


class Mark(NamedTuple):
    """What became of a solution."""

    grade: Grade
    reason: str
    """One line; empty if right."""
    attempt: Attempt | None = None
    """`igsm`: judged step by step."""


Item = Problem | CodeProblem
Marker = Callable[[Sequence[Item], Sequence[Written]], list[Mark]]
"""Grades solutions, one a problem."""


def check_allowed(kind: str, config: NaturalEvaluationConfig) -> None:
    """Raise ConfigError where programs would have to be run and may not; as early as can be."""
    if kind in CODE and not config.allow_untrusted_code:
        raise ConfigError(
            "testing.allow_untrusted_code is false: to grade programs that a model wrote, they must be run, "
            "each in a sandbox on this machine; set testing.allow_untrusted_code=true if you want that"
        )


@contextmanager
def open_marker(kind: str, config: NaturalEvaluationConfig, *, modulus: int = 0) -> Iterator[Marker]:
    """Give what grades solutions of a `kind`, as `Corpus.grader` says; `igsm` with the `modulus` of its family.

    Programs run only where `config` allows it, else ConfigError: before anything is written, not after.
    """
    if kind == "gsm8k":
        yield _each(_by_answer(gsm8k.grade, gsm8k.read_answer, gsm8k.FORM))
    elif kind == "math":
        with math.MathGrader() as grader:
            yield _each(_by_answer(grader.grade, math.read_answer, math.FORM))
    elif kind == "igsm":
        yield _each(lambda problem, written: _by_verdict(problem, written, modulus))
    elif kind in CODE:
        check_allowed(kind, config)
        with Sandbox(config.limits, allow_untrusted_code=True, workers=config.workers) as sandbox:
            yield lambda problems, written: _by_tests(sandbox, problems, written)
    else:
        raise ConfigError(
            f"solutions must be graded as gsm8k, math, igsm or {', '.join(CODE)}, but the corpus says {kind!r}; give "
            "question, solution and answer, or measure the loss alone"
        )


def _each(mark: Callable[[Problem, Written], Mark]) -> Marker:
    def mark_all(problems: Sequence[Item], written: Sequence[Written]) -> list[Mark]:
        texts = [problem for problem in problems if isinstance(problem, Problem)]
        return [mark(problem, one) for problem, one in zip(texts, written, strict=True)]

    return mark_all


def _by_answer(grade: Grader, read: Callable[[str], str | None], form: Form) -> Callable[[Problem, Written], Mark]:
    def mark(problem: Problem, written: Written) -> Mark:
        text, truncated = up_to_answer(written, form)
        given = grade(problem, text, truncated=truncated)
        reasons = {
            Grade.RIGHT: "",
            Grade.WRONG: f"the answer is {problem.answer}, not {read(text)}",
            Grade.UNPARSABLE: "there is no answer that can be read",
            Grade.TRUNCATED: "cut by the length limit",
            Grade.TIMED_OUT: "the answer took too long to compare",
        }
        return Mark(given, reasons[given])

    return mark


def up_to_answer(written: Written, form: Form) -> tuple[str, bool]:
    r"""Return a solution, and whether the limit cut it.

    Where a model gave its answer and went on until the limit, that is the end: what follows is the next problem of a
    model that knows no end of a text, such as one that has not been trained.

    >>> up_to_answer(Written("2 + 2 = 4\n#### 4\n\nQuestion: How many", False, 20), gsm8k.FORM)
    ('2 + 2 = 4\n#### 4', False)
    """
    if written.finished:
        return written.text, False
    steps = form.cut(written.text)
    answer = next((i for i, step in enumerate(steps) if form.is_answer(step)), len(steps))
    # The last step may go on.
    return ("".join(steps[: answer + 1]), False) if answer + 1 < len(steps) else (written.text, True)


_GRADES = {
    Verdict.RIGHT: Grade.RIGHT,
    Verdict.UNPARSABLE: Grade.UNPARSABLE,
    Verdict.TRUNCATED: Grade.TRUNCATED,
}


def _by_verdict(problem: Problem, written: Written, modulus: int) -> Mark:
    solution, mark, rest = written.text.partition(ANSWER)
    words = rest.split()
    # As in `up_to_answer`: the first word is whole where another one follows.
    truncated = not written.finished and len(words) < 2
    answer = " ".join(words if written.finished else words[:1])
    strict, published = (
        judge(problem.question, solution.strip(), answer, modulus, rule=rule) for rule in ("strict", "published")
    )
    if truncated:
        strict, published = strict.cut(), published.cut()
    attempt = Attempt([], solution.strip(), answer if mark else None, strict, published)
    return Mark(_GRADES.get(strict.outcome, Grade.WRONG), strict.reason, attempt)


def _by_tests(sandbox: Sandbox, problems: Sequence[Item], written: Sequence[Written]) -> list[Mark]:
    programs = [problem for problem in problems if isinstance(problem, CodeProblem)]
    outcomes = grade_programs(
        sandbox, programs, [one.text for one in written], finished=[one.finished for one in written]
    )
    return [Mark(outcome.grade, outcome.reason) for outcome in outcomes]
