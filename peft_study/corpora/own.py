"""A model's own solutions as a corpus: right ones as they are, wrong ones taken back where that can be told.

A file of JSON lines, one a solution: `question`, as the corpus has it; `text`; `finished`, false where the model was
stopped before it had ended (true where it is left out). Other keys are for people. Each is graded when it is read.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from peft_study.corpora import gsm8k, math
from peft_study.corpora.records import Document, Problem
from peft_study.corpora.sampled import Grader, Sample, document, judge
from peft_study.corpora.steps import Form
from peft_study.errors import DataError


def question_key(question: str) -> str:
    """Return what tells questions apart: their words."""
    return " ".join(question.split()).casefold()


class Row(NamedTuple):
    """A solution in a file."""

    text: str
    finished: bool


def read_rows(path: Path) -> dict[str, list[Row]]:
    """Return the solutions in a file, by `question_key`; DataError where it cannot be read as such."""
    found: dict[str, list[Row]] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would cut inside texts
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); `peft-study solve` makes such a file") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            question, text, finished = row["question"], row["text"], row.get("finished", True)
            if not isinstance(question, str) or not isinstance(text, str) or not isinstance(finished, bool):
                raise TypeError
        except (ValueError, LookupError, TypeError, AttributeError):
            raise DataError(
                f"{path}, line {number}: must be an object with texts `question` and `text` (and a truth value "
                f"`finished`), but is {line[:60]!r}; "
                "mend or delete that line"
            ) from None
        found.setdefault(question_key(question), []).append(Row(text, finished))
    return found


class OwnSolutions:
    """Documents of the solutions in a file."""

    def __init__(self, path: Path, form: Form, takes: Callable[[Document], bool]) -> None:
        """Read a file; DataError where it cannot be read. `takes` says which documents a tokenizer can write."""
        self.path, self.form, self.takes, self.rows = path, form, takes, read_rows(path)
        self.counts: Counter[str] = Counter()
        """Of what is learned from: `own right`, `own wrong`, `own left out` (as `sampled.document` says) and `own not
        taken`."""

    def documents(
        self,
        problems: Sequence[Problem],
        references: Sequence[Document],
        retraction: str,
        *,
        as_references: bool,
        measured: bool,
    ) -> list[Document]:
        """Return the documents of all solutions that can be learned from, in the order of the problems.

        With `as_references` each is the reference of its problem instead. What is `measured` on is one document a
        problem: its first one, or the reference where there is none. DataError where nothing is left to learn from.
        """
        found: list[Document] = []
        counts: Counter[str] = Counter()
        with ExitStack() as stack:
            grade: Grader = gsm8k.grade
            if self.form is math.FORM:
                grade = stack.enter_context(math.MathGrader()).grade
            for problem, reference in zip(problems, references, strict=True):
                made = self._made(problem, retraction, grade, counts)
                if as_references:
                    made = [reference._replace(id=one.id) for one in made]
                if measured:
                    made = made[:1] or [reference]
                found += made
        if not measured:
            self.counts = counts
            if not found and not counts:
                raise DataError(
                    f"{self.path} must hold solutions of these {len(problems)} problems, but has none of their "
                    "questions; write some with `peft-study solve`"
                )
            if not found:
                raise DataError(
                    f"{self.path} has {counts.total()} solutions of these {len(problems)} problems, but none that can "
                    f"be learned from ({counts['own left out']} are cut off, end without an answer, or are right by "
                    f"luck; {counts['own not taken']} the chat template refuses); write some with `peft-study solve`, "
                    "longer ones (testing.max_new_tokens) or more (--draws)"
                )
        return found

    def _made(self, problem: Problem, retraction: str, grade: Grader, counts: Counter[str]) -> list[Document]:
        made: list[Document] = []
        for text, finished in self.rows.get(question_key(problem.question), []):
            judged = judge(Sample(problem, text, not finished), self.form, grade)
            one = document(judged, self.form, retraction)
            takes = one is not None and self.takes(one)
            counts["own left out" if one is None else f"own {judged.grade.value}" if takes else "own not taken"] += 1
            if one and takes:
                made.append(one._replace(id=f"{one.id}/own{len(made)}") if made else one)
        return made
