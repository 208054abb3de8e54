"""Correction on texts measured: a pretrained model's own solutions, written, graded and counted.

A model is given the prompt of a problem's document, as in training.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from peft_study.corpora.code import CodeProblem
from peft_study.corpora.config import CODE
from peft_study.corpora.corpus import Corpus
from peft_study.corpora.records import Document, Problem
from peft_study.errors import ConfigError
from peft_study.evaluation.cells import SAMPLES, Findings
from peft_study.evaluation.config import NaturalEvaluationConfig
from peft_study.evaluation.grading import Item, Mark, open_marker
from peft_study.evaluation.solving import departures, solving_measures
from peft_study.evaluation.writing import Written, write
from peft_study.igsm.families import family_named
from peft_study.models.pretrained import PretrainedLearner
from peft_study.records import Grade, Measure
from peft_study.rng import python_stream
from peft_study.skills.encode import Encoder
from peft_study.stats import paired_difference, wilson
from peft_study.telling import OnShare, unheard

GRADES = tuple(Grade)
"""Grades by the numbers that stand for them in arrays."""


class Solution(NamedTuple):
    """What a model wrote to a problem, and what became of it."""

    problem: Problem | CodeProblem
    written: Written
    mark: Mark

    @property
    def ok(self) -> bool:
        """Return whether it is right."""
        return self.mark.grade == Grade.RIGHT


# ---- solutions


def chosen(number: int, config: NaturalEvaluationConfig, *names: str) -> list[int]:
    """Return which of `number` items are measured on, in order: the same for all models."""
    if number <= config.n:
        return list(range(number))
    return sorted(python_stream(config.seed, "measured", *names).sample(range(number), config.n))


def solve(
    learner: PretrainedLearner,
    corpus: Corpus,
    encoder: Encoder,
    evaluation: NaturalEvaluationConfig,
    *,
    family: str = "nano",
    on_share: OnShare = unheard,
) -> list[Solution]:
    """Return a model's own solutions of at most `evaluation.n` problems, graded; `family` is that of `igsm`.

    `on_share` is told what share is written. ConfigError where nothing can be graded, or where programs would have to
    be run and may not be.
    """
    modulus = family_named(family).modulus if corpus.grader == "igsm" else 0
    with open_marker(corpus.grader, evaluation, modulus=modulus) as mark:
        places = chosen(len(corpus.problems), evaluation)
        problems: list[Item] = [corpus.problems[place] for place in places]
        prompts = [encoder.prompt(_asking(corpus.validation[place], corpus.grader, encoder)) for place in places]
        written = write(learner.model, learner.tokenizer, prompts, evaluation, on_share=on_share)
        return [Solution(*one) for one in zip(problems, written, mark(problems, written), strict=True)]


def _asking(document: Document, grader: str, encoder: Encoder) -> Document:
    """Return a document whose prompt a model can go on from."""
    if grader not in CODE or encoder.templated:
        return document
    # The newline with which a head ends is one token with the indentation that follows, which a model could not write.
    (asked,) = document.turns[0].segments
    head = document.turns[0]._replace(segments=(asked._replace(text=asked.text.rstrip()),))
    return document._replace(turns=(head, *document.turns[1:]))


def solution_rows(solutions: Sequence[Solution]) -> list[dict[str, Any]]:
    """Return solutions as rows that can be kept as JSON; what they are of is known by the problems' ids."""
    return [
        {"id": problem.id, **written._asdict(), "grade": mark.grade.value, "reason": mark.reason}
        for problem, written, mark in solutions
    ]


def read_solutions(rows: Sequence[dict[str, Any]], corpus: Corpus) -> list[Solution]:
    """Return the solutions that `solution_rows` made rows of; ConfigError where their problems are not the corpus's."""
    problems = {problem.id: problem for problem in corpus.problems}
    if strange := [row["id"] for row in rows if row["id"] not in problems]:
        raise ConfigError(f"the kept solutions are of {strange[0]}, which is not in the corpus; delete them")
    return [
        Solution(
            problems[row["id"]],
            Written(row["text"], row["finished"], row["num_tokens"]),
            Mark(Grade(row["grade"]), row["reason"]),
        )
        for row in rows
    ]


# ---- measures


def correction(
    solutions: Sequence[Solution],
    *,
    split: str,
    retraction: str,
    grader: str,
    baseline: Sequence[Solution] | None = None,
    retracts: bool = True,
    name: str = "id",
) -> Findings:
    """Return what solutions amount to; `baseline`: those of the base before training, of the same problems.

    `retracts` says whether retractions were learned: only then can problems be won by them.
    """
    n, found = len(solutions), Findings()

    def share(metric: str, hits: Sequence[bool]) -> Measure:
        low, high = wilson(sum(hits), len(hits))
        return Measure(split, name, None, metric, sum(hits) / len(hits), low, high, len(hits))

    right = [solution.ok for solution in solutions]
    retracted = [bool(retraction) and retraction in solution.written.text for solution in solutions]
    counted = [Grade.UNPARSABLE, Grade.TRUNCATED]
    counted += [Grade.TIMED_OUT, Grade.CRASHED] if grader in CODE else [Grade.TIMED_OUT] if grader == "math" else []
    found.measures.append(share("accuracy", right))
    for grade in counted:
        found.measures.append(share(grade.value, [solution.mark.grade == grade for solution in solutions]))
    if retraction:
        found.measures.append(share("retractions", retracted))
    if baseline is not None:
        theirs = _aligned(baseline, solutions)
        found.measures.append(Measure(split, name, None, "accuracy_gain", *paired_difference(right, theirs, seed=0), n))
        won = [back for back, ours, other in zip(retracted, right, theirs, strict=True) if ours and not other]
        if retraction and retracts and won:
            found.measures.append(share("won_by_retraction", won))
    attempts = [solution.mark.attempt for solution in solutions if solution.mark.attempt]
    if attempts:
        known = {measure.metric for measure in found.measures}
        more = solving_measures(attempts, split=split, name=name, op=None)
        found.measures += [measure for measure in more if measure.metric not in known]
        found.departures[f"{name}_0"] = departures(attempts)
    columns = {
        "correct": np.array(right, np.uint8),
        "grade": np.array([GRADES.index(solution.mark.grade) for solution in solutions], np.uint8),
        "retracted": np.array(retracted, np.uint8),
        "tokens": np.array([solution.written.num_tokens for solution in solutions], np.int32),
        "id": np.array([solution.problem.id for solution in solutions]),
    }
    # 0: problems of texts have no number of operations.
    found.arrays = {f"{column}_{name}_0": values for column, values in columns.items()}
    found.samples = [_sample(name, solution) for solution in solutions[:SAMPLES]]
    return found


def _aligned(baseline: Sequence[Solution], solutions: Sequence[Solution]) -> list[bool]:
    ids = [[solution.problem.id for solution in each] for each in (baseline, solutions)]
    if ids[0] != ids[1]:
        raise ConfigError(
            f"the base must have solved the same {len(ids[1])} problems in the same order, but has solved "
            f"{len(ids[0])}; measure both with the same corpus and evaluation"
        )
    return [solution.ok for solution in baseline]


def _sample(name: str, solution: Solution) -> dict[str, Any]:
    problem, written, mark = solution
    return {
        "set": name,
        "problem": problem.prompt if isinstance(problem, CodeProblem) else problem.question,
        "solution": written.text,
        "finished": written.finished,
        "verdict": mark.grade.value,
        "reason": mark.reason,
    }
