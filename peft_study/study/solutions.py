"""A model's own solutions, written to a file that `corpus.mistakes=own` learns from (corpora/own.py)."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from peft_study.corpora.corpus import load_corpus
from peft_study.corpora.records import Document, Problem
from peft_study.errors import ConfigError, DataError
from peft_study.evaluation.config import NaturalEvaluationConfig
from peft_study.evaluation.grading import open_marker
from peft_study.evaluation.writing import write
from peft_study.files import locked, whole_lines
from peft_study.models.device import this_device
from peft_study.models.hub import load_pretrained, load_tokenizer
from peft_study.rng import derive_seed
from peft_study.skills.encode import Encoder
from peft_study.study.config import TrialConfig

CHUNK = 32
"""Problems that are written, and kept, at once."""


class Wanted(NamedTuple):
    """A solution that is to be written."""

    problem: Problem
    document: Document
    """Whose prompt the model is given."""
    draw: int
    """Of the solutions of one problem, from 0."""


def write_solutions(
    config: TrialConfig, file: Path, draws: int, on_progress: Callable[[int, int], None]
) -> Counter[str]:
    """Have the model of `config` solve the problems that a run would learn from and validate on, `draws` times each.

    Each is graded and appended to `file` at once, so that a call that was stopped goes on; `on_progress` is told how
    many there are, of how many. Returns how often each grade is in the file. ConfigError where nothing can be graded.
    """
    assert config.pretrained is not None
    assert config.corpus is not None
    testing = config.testing or NaturalEvaluationConfig()
    if config.corpus.mistakes != "none" or config.corpus.name == "igsm":
        raise ConfigError(
            "own solutions are written to problems as they are, in steps, but got "
            f"corpus.name={config.corpus.name} and corpus.mistakes={config.corpus.mistakes}; take gsm8k, math or a "
            "file of questions and solutions, and set corpus.mistakes=own with the run that learns from them"
        )
    corpus = load_corpus(config.corpus, config.data, config.seed, split="validation")
    if corpus.grader not in ("gsm8k", "math"):
        raise ConfigError(
            f"{corpus.source} has no solutions in steps whose answers can be graded; give question, solution, answer"
        )
    problems = [*corpus.learned, *(each for each in corpus.problems if isinstance(each, Problem))]
    documents = [*corpus.train, *corpus.validation]
    wanted = [
        Wanted(problem, document, draw)
        for draw in range(draws)
        for problem, document in zip(problems, documents, strict=True)
    ]
    with locked(file.with_name(f".{file.name}.lock"), busy=f"{file} is being written by another process"):
        rows = list(_kept(file))
        by = _settings(config, testing)
        if strange := next((row["by"] for row in rows if row["by"] != by), None):
            raise ConfigError(f"{file} holds solutions of other settings ({strange}, not {by}); choose another file")
        done = {(row["id"], row["draw"]) for row in rows}
        grades = Counter(row["grade"] for row in rows)
        missing = {(each.problem.id, each.draw) for each in wanted} - done
        num_left = len(missing)
        on_progress(len(wanted) - num_left, len(wanted))
        solve = _solver(config, corpus.grader, testing, by) if missing else None
        # Always the same chunks: what is drawn depends on who is written together.
        for start in range(0, len(wanted) if solve else 0, CHUNK):
            chunk = wanted[start : start + CHUNK]
            if missing.isdisjoint((each.problem.id, each.draw) for each in chunk):
                continue
            assert solve is not None
            found = [row for row in solve(chunk) if (row["id"], row["draw"]) in missing]
            with file.open("a", encoding="utf-8") as opened:
                opened.write("".join(json.dumps(row) + "\n" for row in found))
            grades.update(row["grade"] for row in found)
            num_left -= len(found)
            on_progress(len(wanted) - num_left, len(wanted))
    return grades


def _kept(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows that are there, and take off the file's end a line that a kill has left unfinished."""
    for number, line in enumerate(whole_lines(file), 1):
        try:
            row = json.loads(line)
            _ = row["id"], row["draw"], row["grade"], row["by"]
        except (ValueError, LookupError, TypeError):
            raise DataError(
                f"{file}, line {number}: must be a solution that this command wrote, but is {line[:40]!r}; delete that "
                "line, or choose another file"
            ) from None
        yield row


def _settings(config: TrialConfig, testing: NaturalEvaluationConfig) -> str:
    """Return what solutions depend on beside their problems, in a line."""
    assert config.pretrained is not None
    assert config.corpus is not None
    model = config.pretrained
    shown = [f"{model.name}@{model.revision}" if model.revision else model.name, model.quantization, config.corpus.name]
    # As they are, unless set, so that files of before can be gone on with.
    shown += [f"dtype {model.dtype}"] if model.dtype != "auto" else []
    shown += [f"chat template {config.corpus.chat_template}"] if config.corpus.chat_template != "auto" else []
    drawn = f"temperature {testing.temperature:g}, {testing.max_new_tokens} tokens, seed {testing.seed}"
    return f"{', '.join(shown)}, {drawn}"


def _solver(
    config: TrialConfig, grader: str, testing: NaturalEvaluationConfig, by: str
) -> Callable[[Sequence[Wanted]], list[dict[str, Any]]]:
    """Load the model and return what solves and grades; what is drawn depends on the chunk alone."""
    assert config.pretrained is not None
    assert config.corpus is not None
    model, tokenizer = load_pretrained(config.pretrained), load_tokenizer(config.pretrained)
    if model.device != this_device():
        model.to(this_device())  # pyright: ignore[reportArgumentType]
    encoder = Encoder(tokenizer, config.skill, config.corpus)

    def solve(chunk: Sequence[Wanted]) -> list[dict[str, Any]]:
        options = testing.model_copy(
            update={"seed": derive_seed(testing.seed, "own", chunk[0].problem.id, chunk[0].draw)}
        )
        written = write(model, tokenizer, [encoder.prompt(each.document) for each in chunk], options)
        with open_marker(grader, testing) as mark:
            marks = mark([each.problem for each in chunk], written)
        return [
            {
                "id": each.problem.id,
                "draw": each.draw,
                "by": by,
                "question": each.problem.question,
                **one._asdict(),
                "grade": given.grade.value,
                "reason": given.reason,
            }
            for each, one, given in zip(chunk, written, marks, strict=True)
        ]

    return solve
