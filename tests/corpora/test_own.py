"""Own solutions from a file: each learned from as what it is, and what is measured on is one document a problem."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from peft_study.corpora.config import CorpusConfig
from peft_study.corpora.corpus import Corpus, load_corpus
from peft_study.corpora.own import Row, question_key, read_rows
from peft_study.errors import DataError
from peft_study.skills.config import DataConfig
from tests.corpora.reading import labels

NUM_PROBLEMS = 20


def question(a: int) -> str:
    return f"Ann has {a} and 2 more. How many?"


def right(a: int) -> str:
    return f"There are {a}+2 = {a + 2}.\n#### {a + 2}"


def wrong(a: int) -> str:
    return f"There are {a}+2 = {a + 3}.\n#### {a + 3}"


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    file = tmp_path / "sums.jsonl"
    rows = [
        {"question": question(a), "solution": f"{a}+2 = {a + 2} in all.\n#### {a + 2}", "answer": str(a + 2)}
        for a in range(10, 10 + NUM_PROBLEMS)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def load(problems: Path, samples: str, **changes: Any) -> Corpus:
    settings = {"name": str(problems), "validation_share": 0.3, "mistakes": "own", "samples": samples, **changes}
    return load_corpus(CorpusConfig.model_validate(settings), DataConfig(), 0)


def test_each_solution_is_what_it_is(problems: Path, tmp_path: Path) -> None:
    rows = [{"question": f" {question(a).upper()}", "text": right(a)} for a in range(10, 30)]
    rows += [{"question": question(a), "text": wrong(a), "finished": True, "more": 1} for a in range(10, 30)]
    rows += [{"question": question(a), "text": "There are", "finished": False} for a in range(10, 30)]
    corpus = load(problems, write(tmp_path / "own.jsonl", rows))
    learned = len(corpus.learned)
    assert len(corpus.train) == 2 * learned
    assert len({document.id for document in corpus.train}) == 2 * learned
    assert f"own left out {learned}; own right {learned}; own wrong {learned}" in corpus.source
    for document in corpus.train:
        text = document.turns[1].text
        kinds = [segment.kind for segment in document.turns[1].segments]
        if document.id.endswith("/own1"):
            assert kinds == ["mistake", "retraction", "step", "step"]
            assert text.startswith("There are")
            assert "Wait, that last step is wrong.\n" in text
            assert labels(document) == [True, False, False]
        else:
            assert kinds == ["step", "step"]
    # Of what is measured on there is one document a problem, in the order of the problems.
    assert len(corpus.validation) == len(corpus.problems) == NUM_PROBLEMS - learned
    for document, problem in zip(corpus.validation, corpus.problems, strict=True):
        assert document.id == problem.id


def test_what_a_template_will_not_have_is_left_out_and_counted(problems: Path, tmp_path: Path) -> None:
    rows = [{"question": question(a), "text": text} for a in range(30) for text in (right(a), wrong(a))]
    file = write(tmp_path / "own.jsonl", rows)
    settings = {"name": str(problems), "validation_share": 0.3, "mistakes": "own", "samples": file}
    config = CorpusConfig.model_validate(settings)
    corpus = load_corpus(config, DataConfig(), 0, takes=lambda document: not any(labels(document)))
    learned = len(corpus.learned)
    assert f"own not taken {learned}; own right {learned}" in corpus.source
    assert len(corpus.train) == learned
    assert not any(any(labels(document)) for document in [*corpus.train, *corpus.validation])
    assert len(corpus.validation) == len(corpus.problems)
    with pytest.raises(DataError, match=r"has 28 solutions of .*, but none .* 28 the chat template refuses"):
        load_corpus(config, DataConfig(), 0, takes=lambda document: False)


def test_without_a_rate_it_is_the_references_of_the_same_problems(problems: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "own.jsonl", [{"question": question(a), "text": wrong(a)} for a in range(10, 20)])
    control, own = (load(problems, file, retry_rate=rate) for rate in (0, 0.5))
    assert [document.id for document in control.train] == [document.id for document in own.train]
    assert all(segment.kind == "step" for document in control.train for segment in document.turns[1].segments)
    assert 0 < len(control.train) < len(control.learned)


def test_what_is_measured_on_has_its_reference_where_there_is_no_solution(problems: Path, tmp_path: Path) -> None:
    rows = [{"question": question(a), "text": wrong(a)} for a in range(30)]
    every = load(problems, write(tmp_path / "a.jsonl", rows))
    learned = {problem.question for problem in every.learned}
    rows = [{"question": text, "text": wrong(int(text.split()[2]))} for text in learned]
    corpus = load(problems, write(tmp_path / "b.jsonl", rows))
    assert corpus.train == every.train
    assert all(not any(labels(document)) for document in corpus.validation)
    assert any(any(labels(document)) for document in every.validation)


@pytest.mark.parametrize("line", ["{", "[]", '{"question": "a"}', '{"question": "a", "text": 3}', "3"])
def test_a_line_that_is_no_solution_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text('{"question": "How many?", "text": "One."}\n' + line + "\n")
    with pytest.raises(DataError, match=r"own.jsonl, line 2: must be an object with texts"):
        read_rows(file)


def test_a_file_must_be_there_and_hold_some_of_the_questions(problems: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        load(problems, str(tmp_path / "nothing.jsonl"))
    with pytest.raises(DataError, match="but has none of their questions"):
        load(problems, write(tmp_path / "own.jsonl", [{"question": "How many?", "text": right(1)}]))
    with pytest.raises(DataError, match=r"but none that can be learned from \(\d+ are cut off.*testing.max_new_tokens"):
        load(problems, write(tmp_path / "own.jsonl", [{"question": question(a), "text": "?"} for a in range(30)]))


def test_rows_are_found_by_the_words_of_their_question(tmp_path: Path) -> None:
    file = Path(write(tmp_path / "own.jsonl", [{"question": "How\n MANY?", "text": "1", "finished": False}]))
    assert read_rows(file) == {question_key("how many?"): [Row("1", finished=False)]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mistakes": "own"}, "mistakes=own needs samples"),
        ({"samples": "a.jsonl"}, "samples go with mistakes=own alone, but it is none"),
        ({"mistakes": "weak", "samples": "a"}, "samples go with mistakes=own alone, but it is weak"),
    ],
)
def test_samples_go_with_own_mistakes(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CorpusConfig.model_validate({"name": "gsm8k", **changes})
