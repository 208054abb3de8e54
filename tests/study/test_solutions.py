"""A model's own solutions in a file: all problems, each draw once, gone on with after a kill, and learned from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peft_study.corpora.own import read_rows
from peft_study.errors import ConfigError, DataError
from peft_study.study import solutions
from peft_study.study.config import TrialConfig, build_config
from peft_study.study.solutions import write_solutions


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    """Return a file of sums with solutions in steps."""
    file = tmp_path / "sums.jsonl"
    sums = [(a, b) for a in range(2, 7) for b in range(2, 6)]
    rows = [{"question": f"{a} + {b}?", "solution": f"It is {a + b}.\n#### {a + b}"} for a, b in sums]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def config_of(model: Path, problems: Path, **changes: Any) -> TrialConfig:
    settings = {
        "pretrained.name": str(model),
        "corpus.name": str(problems),
        "corpus.validation_share": 0.3,
        "testing.max_new_tokens": 6,
        "testing.temperature": 1.0,
    }
    return build_config(settings | changes)


def test_every_problem_is_solved_as_often_as_asked_and_a_kill_costs_no_more_than_a_chunk(
    checkpoint: Callable[[str], Path], problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solutions, "CHUNK", 8)
    config, file = config_of(checkpoint("llama"), problems), tmp_path / "own.jsonl"
    told: list[tuple[int, int]] = []
    grades = write_solutions(config, file, 2, lambda *counts: told.append(counts))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert sorted((row["question"], row["draw"]) for row in rows) == sorted(
        (json.loads(line)["question"], draw) for line in problems.read_text().splitlines() for draw in (0, 1)
    )
    assert sum(grades.values()) == 40
    assert {row["grade"] for row in rows} == set(grades) <= {"wrong", "unparsable", "truncated", "right"}
    assert told == [(0, 40), (8, 40), (16, 40), (24, 40), (32, 40), (40, 40)]
    assert len({row["text"] for row in rows}) > 10
    assert sum(map(len, read_rows(file).values())) == 40

    # Killed while it wrote its third chunk.
    text = file.read_text()
    file.write_text("".join(text.splitlines(keepends=True)[:19]) + '{"id": "a')
    told.clear()
    assert write_solutions(config, file, 2, lambda *counts: told.append(counts)) == grades
    assert file.read_text() == text
    assert told[0] == (19, 40)
    # Another model's are not taken for this one's.
    with pytest.raises(ConfigError, match="holds solutions of other settings"):
        write_solutions(config_of(checkpoint("gpt2"), problems), file, 2, lambda *_: None)
    # And when all is there nothing is loaded.
    monkeypatch.setattr(solutions, "load_pretrained", None)
    assert write_solutions(config, file, 2, lambda *_: None) == grades


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus.name": "igsm"}, "corpus.name=igsm"),
        ({"corpus.mistakes": "weak"}, "corpus.mistakes=weak"),
    ],
)
def test_what_cannot_be_solved_is_refused(
    checkpoint: Callable[[str], Path], problems: Path, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        write_solutions(config_of(checkpoint("llama"), problems, **changes), tmp_path / "own.jsonl", 1, lambda *_: None)


def test_a_file_of_something_else_is_left_alone(
    checkpoint: Callable[[str], Path], problems: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.jsonl").write_text('{"question": "a", "text": "b"}\n')
    with pytest.raises(DataError, match=r"own.jsonl, line 1: must be a solution that this command wrote"):
        write_solutions(config_of(checkpoint("llama"), problems), tmp_path / "own.jsonl", 1, lambda *_: None)
    assert (tmp_path / "own.jsonl").read_text() == '{"question": "a", "text": "b"}\n'
