"""Corpora, solutions and measures, made and read by hand."""

from peft_study.corpora.corpus import Corpus
from peft_study.corpora.records import Document, Problem, Segment, SegmentKind, Turn
from peft_study.evaluation.cells import Findings
from peft_study.evaluation.config import NaturalEvaluationConfig
from peft_study.evaluation.grading import Mark
from peft_study.evaluation.natural_solving import Solution
from peft_study.evaluation.writing import Written
from peft_study.records import METRICS, Grade

TESTING = NaturalEvaluationConfig(max_new_tokens=60, batch=2)


def document(name: str, *segments: tuple[str, SegmentKind]) -> Document:
    asked = Turn("user", (Segment(f"{name}\n", "prompt"),))
    return Document(name, (asked, Turn("assistant", tuple(Segment(*segment) for segment in segments))))


def corpus_of(documents: list[Document], *, grader: str = "gsm8k") -> Corpus:
    problems = [Problem(each.id, each.id, "3 + 4 = 7\n#### 7", "7") for each in documents]
    return Corpus([], documents, problems, grader, "", "by hand")


def table(found: Findings, name: str) -> dict[str, tuple[float, int]]:
    """Return the values and numbers of the measures of a set."""
    assert all(measure.low <= measure.value <= measure.high for measure in found.measures)
    assert {measure.metric for measure in found.measures} <= METRICS.keys()
    assert all(measure.op is None for measure in found.measures)
    return {measure.metric: (measure.value, measure.n) for measure in found.measures if measure.set == name}


def written(name: str, text: str, grade: Grade, *, finished: bool = True) -> Solution:
    problem = Problem(name, name, "3 + 4 = 7\n#### 7", "7")
    return Solution(problem, Written(text, finished, len(text)), Mark(grade, ""))
