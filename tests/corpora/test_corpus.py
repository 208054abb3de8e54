"""Corpora: what is learned from and what is measured on never share a prompt, and seeds move only the first."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from peft_study.corpora import corpus as corpora
from peft_study.corpora.code import CodeProblem
from peft_study.corpora.config import CorpusConfig
from peft_study.corpora.corpus import Corpus, Part, held_out, key, load_corpus
from peft_study.corpora.records import Document, Problem, Segment, Turn
from peft_study.corpora.steps import Form
from peft_study.errors import ConfigError, DataError
from peft_study.skills.config import DataConfig

JANET = (
    "Janet’s ducks lay 16 eggs per day. She eats three for breakfast every morning and bakes muffins for her friends "
    "every day with four. She sells the remainder at the farmers' market daily for $2 per fresh duck egg. How much in "
    "dollars does she make every day at the farmers' market?"
)
"""The first question of GSM8K's test split."""
PROGRAM = {
    "task_id": "HumanEval/0",
    "prompt": 'def add(a, b):\n    """Add."""\n',
    "entry_point": "add",
    "canonical_solution": "    return a + b\n",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
}


def sum_row(a: int, b: int, name: str = "Ann") -> dict[str, str]:
    return {
        "question": f"{name} has {a} and {b} and {a} more. How many?",
        "answer": f"She has {a} + {b} = {a + b}.\nThat makes {a + b} + {a} = {2 * a + b}.\n#### {2 * a + b}",
    }


def write(file: Path, rows: list[Any]) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of small sets that are called as the published ones are."""
    write(tmp_path / "gsm8k" / "train.jsonl", [sum_row(i, 3 * i + 1) for i in range(1, 61)])
    write(tmp_path / "gsm8k" / "test.jsonl", [sum_row(i, 5, "Bob") for i in range(4)])
    write(tmp_path / "humaneval" / "HumanEval.jsonl", [PROGRAM])
    monkeypatch.setenv("PEFT_STUDY_DATA", str(tmp_path))
    return tmp_path


def load(seed: int = 0, split: Any = "validation", stream: DataConfig | None = None, **config: Any) -> Corpus:
    return load_corpus(CorpusConfig.model_validate(config), stream or DataConfig(), seed, split=split)


def ids(documents: list[Document]) -> list[str]:
    return [document.id for document in documents]


def mistakes(documents: list[Document]) -> int:
    return sum(s.kind == "mistake" for d in documents for turn in d.turns for s in turn.segments)


# ---- built-in sets


def test_a_share_of_the_prompts_is_held_out_whatever_the_seed(data: Path) -> None:
    corpora = [load(seed, name="gsm8k", validation_share=0.2) for seed in (0, 1)]
    for corpus in corpora:
        assert len(corpus.train) + len(corpus.validation) == 60
        assert 5 <= len(corpus.validation) <= 20
        assert not set(ids(corpus.train)) & set(ids(corpus.validation))
        assert corpus.grader == "gsm8k"
        assert [problem.id for problem in corpus.problems] == ids(corpus.validation)
        assert mistakes(corpus.train) == 0
    assert corpora[0] == corpora[1]
    less = load(name="gsm8k", validation_share=0.1)
    assert set(ids(less.validation)) < set(ids(corpora[0].validation))
    assert corpora[0].source == (
        f"{len(corpora[0].train)} documents of gsm8k (train) without {len(corpora[0].validation)} kept apart; "
        f"validation: {len(corpora[0].validation)} of a share of its prompts"
    )


def test_the_seed_moves_what_is_learned_from_and_not_what_is_measured_on(data: Path) -> None:
    config: dict[str, Any] = {"name": "gsm8k", "mistakes": "number", "retry_rate": 0.5, "limit": 20}
    one, same, other = load(0, **config), load(0, **config), load(1, **config)
    assert one == same
    assert len(one.train) == len(other.train) == 20
    assert ids(one.train) != ids(other.train)
    assert one.validation == other.validation
    assert one.digest != other.digest
    assert mistakes(one.train) > 5
    again = load_corpus(CorpusConfig.model_validate({**config, "seed": 1}), DataConfig(), 0)
    assert again.train == one.train
    assert again.validation != one.validation
    assert ids(again.validation) == ids(one.validation)


def test_what_is_measured_on_moves_nothing_that_is_learned_from(data: Path) -> None:
    config: dict[str, Any] = {"name": "gsm8k", "mistakes": "weak"}
    held, tested = load(**config), load(**config, split="test")
    assert tested.train == held.train
    assert ids(tested.validation) == [f"gsm8k/test/{i}" for i in range(4)]
    assert [problem.answer for problem in tested.problems] == ["5", "7", "9", "11"]  # pyright: ignore
    assert tested.source.endswith("; test: 4 of gsm8k (test)")
    named = load(**config, split="test", test="test")
    assert named.validation == tested.validation


def test_nothing_needs_to_beheld_out(data: Path) -> None:
    corpus = load(name="gsm8k", validation_share=0)
    assert (len(corpus.train), corpus.validation, corpus.problems, corpus.grader) == (60, [], [], "")


def test_mistakes_are_taken_from_problems_of_the_same_side(data: Path) -> None:
    corpus = load(name="gsm8k", mistakes="foreign", retry_rate=0.6, validation_share=0.3)
    for documents in (corpus.train, corpus.validation):
        right = {s.text.strip() for d in documents for s in d.turns[1].segments if s.kind == "step"}
        wrong = {s.text.strip() for d in documents for s in d.turns[1].segments if s.kind == "mistake"}
        assert wrong
        assert wrong <= right


QUESTION = {"question": "How many are left?", "solution": "5 - 2 = 3.\nSo 3.", "answer": "3"}
BOXED = {"question": "What is x?", "solution": r"It is 1 + 1. So $x=\boxed{2}$.", "answer": "2"}
KINDS: dict[str, list[dict[str, Any]]] = {
    "chat": [
        {"messages": [{"role": "user", "content": f"Hi {i}"}, {"role": "assistant", "content": "a"}]} for i in (0, 1)
    ],
    "lines": [QUESTION | {"question": f"{i}?"} for i in (2, 3)],
    "boxed": [BOXED | {"question": f"{i}?"} for i in (4, 5)],
    "text": [{"text": f"Once {i}."} for i in (6, 7)],
}


@pytest.mark.parametrize("measured", [*KINDS, "gsm8k", "humaneval"])
@pytest.mark.parametrize("learned", KINDS)
def test_what_is_measured_on_may_be_of_another_kind(data: Path, tmp_path: Path, learned: str, measured: str) -> None:
    files = {name: write(tmp_path / f"{name}.jsonl", rows) for name, rows in KINDS.items()}
    files |= {f"other {name}": write(tmp_path / f"other-{name}.jsonl", rows[::-1]) for name, rows in KINDS.items()}
    test = measured if measured not in KINDS else files[f"other {measured}" if measured == learned else measured]
    mistaken = {"mistakes": "weak", "retry_rate": 0.9} if learned in ("lines", "boxed") else {}
    corpus = load(name=files[learned], test=test, split="test", validation_share=0, allow_test_sets=True, **mistaken)
    expected = {"gsm8k": 4, "humaneval": 1}.get(measured, 2)
    assert len(corpus.validation) == expected
    assert len(corpus.problems) == (expected if corpus.grader else 0)
    styles = {"lines": "gsm8k", "boxed": "math"}
    # Own rows are written as those that are learned from are.
    style = styles.get(learned, styles[measured]) if measured in styles else measured
    assert corpus.grader == ("" if measured in ("chat", "text") else style)
    if learned == "lines" and measured in ("lines", "gsm8k"):
        assert mistakes(corpus.validation)


def test_a_program_is_measured_on_as_a_test(data: Path, tmp_path: Path) -> None:
    own = write(tmp_path / "own.jsonl", [{"prompt": f"def f{i}():\n", "completion": "    pass\n"} for i in range(40)])
    corpus = load(name=own, test="humaneval", split="test")
    assert corpus.grader == "humaneval"
    (problem,) = corpus.problems
    assert isinstance(problem, CodeProblem)
    assert [(turn.role, turn.text) for turn in corpus.validation[0].turns] == [
        ("user", PROGRAM["prompt"]),
        ("assistant", PROGRAM["canonical_solution"]),
    ]
    assert load(name=own, test="humaneval").train == corpus.train
    trained = load(name="humaneval", allow_test_sets=True, validation_share=0)
    assert ids(trained.train) == ["HumanEval/0"]


def test_the_data_must_be_somewhere(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(name="gsm8k", path=str(data / "gsm8k")) == load(name="gsm8k")
    with pytest.raises(DataError, match=r"math must hold train.jsonl"):
        load(name="math")
    monkeypatch.delenv("PEFT_STUDY_DATA")
    with pytest.raises(ConfigError, match=r"neither corpus.path .* nor PEFT_STUDY_DATA says where it is; set one"):
        load(name="gsm8k")
    with pytest.raises(ConfigError, match=r"neither corpus.path .* nor PEFT_STUDY_DATA"):
        load(name="humaneval", allow_test_sets=True)


def test_a_test_set_may_lie_elsewhere(data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    by_variable = load(name="gsm8k", test="humaneval", split="test")
    monkeypatch.delenv("PEFT_STUDY_DATA")
    here: dict[str, Any] = {"name": "gsm8k", "path": str(data / "gsm8k"), "test": "humaneval", "split": "test"}
    with pytest.raises(ConfigError, match=r"humaneval must be found, but .*corpus.test_path"):
        load(**here)
    assert load(**here, test_path=str(data / "humaneval")) == by_variable
    # Also of the same set: what is learned from stays where it is.
    write(tmp_path / "other" / "test.jsonl", [sum_row(7, 9, "Eve")])
    same: dict[str, Any] = {**here, "test": "gsm8k", "test_path": str(tmp_path / "other")}
    other = load(**same)
    assert len(other.validation) == 1
    assert other.train == by_variable.train


def test_a_path_of_a_test_set_needs_its_name() -> None:
    with pytest.raises(ValidationError, match=r"test_path goes with a test that is one of gsm8k, .* but test is ''"):
        CorpusConfig(name="gsm8k", test_path="somewhere")


# ---- anyone's data


def test_problems_of_a_file_get_mistakes_and_a_grader(tmp_path: Path) -> None:
    rows = [sum_row(i, 2) for i in range(1, 41)]
    file = write(tmp_path / "own.jsonl", rows)
    corpus = load(name=file, columns={"solution": "answer"}, mistakes="number", retry_rate=0.5, retraction="[BACK]")
    assert mistakes(corpus.train) > 10
    assert mistakes(corpus.validation) > 0
    assert corpus.grader == "gsm8k"
    assert "[BACK]" in corpus.train[0].turns[1].text + corpus.train[1].turns[1].text + corpus.train[2].turns[1].text
    control = load(name=file, columns={"solution": "answer"}, mistakes="number", retry_rate=0)
    assert mistakes(control.train) == 0
    assert ids(control.train) == ids(corpus.train)


class Adding:
    """Writes mistakes that say which they are."""

    def __init__(self, form: Form) -> None:
        self.form, self.counts = form, Counter[str]()

    def rewrite(self, problem: Problem, steps: list[str], at: int, rng_seed: int) -> str:
        self.counts["written"] += 1
        return f"She has 1000 + {rng_seed % 1000} of {len(steps)} steps."


def test_a_model_writes_the_mistakes(tmp_path: Path) -> None:
    file = write(tmp_path / "sums.jsonl", [sum_row(i, 5) for i in range(40)])
    asked = {"model": "m", "answers": "answers.jsonl"}
    config = {"name": file, "mistakes": "rewritten", "rewriter": asked, "retry_rate": 0.5, "validation_share": 0.3}
    config["columns"] = {"solution": "answer"}
    opened = []

    def opens(form: Form) -> Adding:
        opened.append(Adding(form))
        return opened[-1]

    corpus = load_corpus(CorpusConfig.model_validate(config), DataConfig(), 0, rewriter=opens)
    kinds = [s for document in corpus.train for s in document.turns[1].segments if s.kind == "mistake"]
    assert all("She has 1000 + " in segment.text for segment in kinds)
    assert f"; written {opened[0].counts['written']}" in corpus.source
    assert opened[0].counts["written"] > len(kinds) > 10  # some are of what is measured on
    # The control asks nobody.
    control = load_corpus(CorpusConfig.model_validate(config | {"retry_rate": 0}), DataConfig(), 0, rewriter=opens)
    assert len(opened) == 1
    assert [document.id for document in control.train] == [document.id for document in corpus.train]
    with pytest.raises(ConfigError, match="needs what opens its rewriter"):
        load_corpus(CorpusConfig.model_validate(config), DataConfig(), 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mistakes": "rewritten"}, "mistakes=rewritten needs rewriter.model and rewriter.answers"),
        ({"rewriter": {"model": "m", "answers": "a"}}, "go with mistakes=rewritten alone, but it is none"),
    ],
)
def test_a_rewriter_goes_with_rewritten_mistakes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CorpusConfig.model_validate({"name": "gsm8k", **changes})


def test_what_has_no_steps_has_no_mistakes(tmp_path: Path) -> None:
    file = write(tmp_path / "own.jsonl", [{"text": f"a {i}"} for i in range(9)])
    with pytest.raises(
        ConfigError, match=r"mistakes=weak needs solutions in steps .*own.jsonl has none; set corpus.mistakes=n"
    ):
        load(name=file, mistakes="weak")
    corpus = load(name=file)
    assert (corpus.problems, corpus.grader) == ([], "")


def test_another_file_may_be_measured_on(tmp_path: Path) -> None:
    chats = [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a"}] for i in range(6)]
    file = write(tmp_path / "own.jsonl", [{"messages": chat} for chat in chats])
    valid = write(tmp_path / "valid.jsonl", [{"messages": chats[2]}, {"messages": chats[2]}])
    test = write(tmp_path / "test.jsonl", [{"messages": chats[4]}])
    corpus = load(name=file, validation=valid, test=test)
    # What is measured on in either is not learned from.
    assert ids(corpus.train) == ["own/0", "own/1", "own/3", "own/5"]
    assert ids(corpus.validation) == ["valid/0", "valid/1"]
    tested = load(name=file, validation=valid, test=test, split="test")
    assert tested.train == corpus.train
    assert ids(tested.validation) == ["test/0"]
    with pytest.raises(DataError, match="leaves nothing to learn from: every prompt is measured on"):
        load(name=file, validation=file)


def test_a_folder_has_splits_by_name(tmp_path: Path) -> None:
    for split, start in (("train", 0), ("dev", 10)):
        write(tmp_path / f"{split}.jsonl", [{"text": f"a {i}"} for i in range(start, start + 5)])
    corpus = load(name=str(tmp_path), validation="dev")
    assert (len(corpus.train), len(corpus.validation)) == (5, 5)
    with pytest.raises(ConfigError, match=r"has no test set of its own; set corpus.test to a split, a file"):
        load(name=str(tmp_path), split="test")
    with pytest.raises(ConfigError, match=r"must be files or one of gsm8k, math, .* but got 'dev'; give a file"):
        load(name=str(tmp_path / "train.jsonl"), validation="dev")


def test_the_style_is_that_of_what_is_learned_from(tmp_path: Path) -> None:
    boxed = write(tmp_path / "own.jsonl", [{"question": str(i), "solution": rf"So $\boxed{{{i}}}$."} for i in range(5)])
    figures = write(tmp_path / "valid.jsonl", [{"question": "a", "solution": "It is 7.", "answer": 7}])
    corpus = load(name=boxed, validation=figures)
    assert corpus.grader == "math"
    assert corpus.validation[0].turns[1].text == "It is 7.\n\nThe answer is $\\boxed{7}$."


# ---- test sets


@pytest.mark.parametrize(
    "row",
    [
        {"text": f"Question: {JANET} Answer: 18"},
        {"prompt": JANET, "completion": "18"},
        {"question": JANET, "solution": "#### 18"},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": JANET}]},
    ],
)
def test_questions_of_test_sets_are_refused_by_what_they_say(tmp_path: Path, row: dict[str, Any]) -> None:
    others = [{name: f"{value} {i}" if isinstance(value, str) else value for name, value in row.items()} for i in "ab"]
    clean = [json.loads(json.dumps(other, ensure_ascii=False).replace("16 eggs", "17 eggs")) for other in others]
    file = write(tmp_path / "own.jsonl", [*clean, row])
    with pytest.raises(
        DataError, match=r"own.jsonl has 1 documents with questions of test sets, first own/2 with one o"
    ):
        load(name=file)
    assert load(name=file, allow_test_sets=True, validation_share=0).train
    with pytest.raises(DataError, match="questions of test sets"):
        load(name=write(tmp_path / "clean.jsonl", clean), validation=file)


def test_names_of_test_problems_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "own.jsonl", [{"text": "a"}, {"text": "b", "task_id": "HumanEval/7"}])
    with pytest.raises(DataError, match=r"own.jsonl holds HumanEval/7, a problem of a test set; give other data"):
        load(name=file)
    assert load(name=file, allow_test_sets=True)


def test_a_built_in_set_leaves_questions_of_test_sets_out(data: Path) -> None:
    file = data / "gsm8k" / "train.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    write(file, [*rows, {"question": JANET, "answer": "18.\n#### 18"}])
    corpus = load(name="gsm8k")
    assert "gsm8k/train/60" not in ids(corpus.train + corpus.validation)
    assert len(corpus.train) + len(corpus.validation) == 60
    assert load(name="gsm8k", allow_test_sets=True, validation_share=0).train[-1].id == "gsm8k/train/60"


def test_a_prompt_of_its_own_test_set_is_an_error(data: Path) -> None:
    test = json.loads((data / "gsm8k" / "test.jsonl").read_text().splitlines()[0])
    file = data / "gsm8k" / "train.jsonl"
    file.write_text(file.read_text() + json.dumps(test) + "\n" + json.dumps(test) + "\n")
    with pytest.raises(DataError, match=r"have 1 prompts in common; name that test set as corpus.test"):
        load(name="gsm8k", split="test", validation_share=0)
    kept = load(name="gsm8k", split="test", test="test", validation_share=0)
    assert len(kept.train) == 60


def test_the_published_training_split_loses_nothing() -> None:
    if not os.environ.get("PEFT_STUDY_DATA"):
        pytest.skip("PEFT_STUDY_DATA is unset: no GSM8K")
    corpus = load(name="gsm8k")
    assert len(corpus.train) + len(corpus.validation) == 7473
    assert 330 < len(corpus.validation) < 420


# ---- held out


def text(prompt: str, number: int) -> Document:
    asked = Turn("user", (Segment(prompt, "prompt"),))
    return Document(f"a/{number}", (asked, Turn("assistant", (Segment(f"answer {number}", "text"),))))


@given(
    prompts=st.lists(st.sampled_from("abcdefgh"), min_size=2).filter(lambda p: len(set(p)) > 1),
    share=st.floats(0, 0.99),
)
def test_equal_prompts_are_on_one_side(prompts: list[str], share: float) -> None:
    documents = [text(prompt, i) for i, prompt in enumerate(prompts)]
    train, held = held_out(Part(documents, None, "", "a"), share)
    assert sorted([*train, *held]) == sorted(documents)
    assert not {key(item) for item in train} & {key(item) for item in held}
    assert train
    assert bool(held) == (share > 0)


def test_about_the_share_is_held_out_and_stays_so_where_documents_are_added() -> None:
    documents = [text(f"prompt {i}", i) for i in range(2_000)]
    held = [set(ids(held_out(Part(part, None, "", "a"), 0.1)[1])) for part in (documents, documents[:1_000])]  # pyright: ignore
    assert 140 < len(held[0]) < 260
    assert held[1] == {identity for identity in held[0] if int(identity[2:]) < 1_000}


def test_one_prompt_cannot_beheld_out() -> None:
    with pytest.raises(DataError, match=r"has one prompt, so none can be held out; set corpus.validation"):
        held_out(Part([text("a", 0), text(" A\n", 1)], None, "", "own.jsonl"), 0.1)


def test_the_key_is_what_is_asked() -> None:
    system = Turn("system", (Segment("Be brief.\n", "prompt"),))
    asked = text("Who  is\nit?\n", 0)
    assert key(asked) == key(Problem("a", "who is it?", "", "")) == "who is it?"
    assert key(asked._replace(turns=(system, *asked.turns))) == key(asked)
    assert key(asked._replace(turns=(*asked.turns, *text("Why?", 1).turns))) == key(asked)
    assert key(Document("a", (Turn("assistant", (Segment("A text.", "text"),)),))) == "a text."


# ---- iGSM


def test_a_stream_has_as_many_documents_as_are_asked_for_and_its_own_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = DataConfig(retry_rate=0.5)
    monkeypatch.setattr(corpora, "IGSM_DOCUMENTS", 30)
    assert len(load(3, stream=stream).train) == 30
    corpus = load(3, stream=stream, limit=50)
    assert (len(corpus.train), len(corpus.validation), corpus.grader) == (50, 3, "igsm")
    assert corpus.train[0].id == "igsm/train/0"
    assert (
        [problem.id for problem in corpus.problems]
        == ids(corpus.validation)
        == [f"igsm/validation/{i}" for i in range(3)]
    )
    assert mistakes(corpus.train) > 30
    other = load(4, stream=stream, limit=50)
    assert other.validation == corpus.validation
    assert other.train != corpus.train
    tested = load(3, stream=stream, limit=50, split="test")
    assert tested.train == corpus.train
    assert tested.validation[0].id == "igsm/test/0"
    assert mistakes(load(3, stream=DataConfig(retry_rate=0), limit=50).train) == 0
