"""Records and verdicts: the JSON lines of the command line, there and back."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peft_study.igsm.export import documents
from peft_study.igsm.families import FAMILIES, MED, NANO
from peft_study.igsm.records import document_record, records, verdict_record
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.splits import split_hash
from peft_study.igsm.stream import WindowStream, draw_document
from peft_study.igsm.verify import split_sentences
from peft_study.igsm.vocabulary import CATEGORY_OF


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
@pytest.mark.parametrize("order", ["pq", "qp"])
@pytest.mark.parametrize("rule", ["strict", "published"])
def test_what_is_drawn_is_judged_right(family, order: str, rule: str) -> None:
    asked = {"family": family, "order": order, "kind": "miss", "retry_rate": 0.3, "split": "test"}
    settings = StreamSettings.model_validate(asked)
    for record in records(settings, 15):
        verdict = verdict_record(json.dumps(record), 1, rule)
        assert verdict["ok"] is True, verdict
        assert verdict["op"] == record["op"]
        assert verdict["retries"] == len(record["mistakes"])
        assert verdict["unnecessary"] == 0
        assert verdict["first_wrong_step"] is None


def test_mistakes_stand_where_the_record_says() -> None:
    settings = StreamSettings(family=NANO, ops=(4,), retry_rate=0.5, kind="weak")
    computable = set()
    for record in records(settings, 40):
        sentences = split_sentences(record["solution"])
        retracted = [i for i, sentence in enumerate(sentences) if sentence.endswith("as [BACK]")]
        assert retracted == [mistake["sentence"] for mistake in record["mistakes"]]
        computable |= {mistake["computable"] for mistake in record["mistakes"]}
        assert {mistake["kind"] for mistake in record["mistakes"]} <= {"weak"}
    assert computable == {True, False}


def test_template_hash_is_that_of_the_split() -> None:
    settings = StreamSettings(family=MED, ops=(5,))
    document = draw_document(settings, 3)
    assert int(document_record(settings, document)["template_hash"], 16) == split_hash(document.problem)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Expecting"),
        ("[]", "indices must be"),
        ("null", "not subscriptable"),
        ('{"problem": "x", "answer": "1"}', "the line has no 'solution'"),
        ('{"problem": "How many", "solution": "", "answer": "1"}', "no question"),
        ('{"problem": "x", "solution": "y", "answer": "1", "modulus": 0}', "from 1, but got 0"),
        ('{"problem": "x", "solution": "y", "answer": "1", "modulus": "many"}', "from 1, but got many"),
        ('{"problem": "x", "solution": "y", "answer": "1", "modulus": 2.7}', "from 1, but got 2.7"),
        ('{"problem": "x", "solution": "y", "answer": "1", "modulus": true}', "from 1, but got True"),
        ('{"problem": "x", "solution": "y", "answer": "1", "modulus": Infinity}', "from 1, but got inf"),
        ("[" * 100_000, "nested too deeply"),
        ("  ", "the line is empty"),
    ],
)
def test_a_line_that_cannot_be_read_is_a_verdict(line: str, reason: str) -> None:
    verdict = verdict_record(line, 23, "strict")
    assert verdict["ok"] is None
    assert reason in verdict["reason"]


def _renamed(record: dict[str, Any]) -> dict[str, Any]:
    """Return `record` with every name and category replaced by one that our lists do not have."""
    # As the words of the sentences: each X's Y, How many Y does X have?
    pairs = re.findall(
        r"(?:each|Define) (.+?)'s (.+?)(?= and each |, each | equals | as [\[a-zA-Z]|\. |\.$)",
        (
            record["problem"].partition("How many")[0]
            if not record["problem"].startswith(" How many")
            else record["problem"].partition("?")[2]
        )
        + record["solution"],
    )
    names = sorted({name for pair in pairs for name in pair}, key=len, reverse=True)
    assert names
    new = {name: f"Zq{i}" for i, name in enumerate(names)}
    pattern = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in names))
    return record | {key: pattern.sub(lambda found: new[found[0]], record[key]) for key in ("problem", "solution")}


@pytest.mark.parametrize(("family", "op"), [("med", 20), ("hard", 32)])
@pytest.mark.parametrize("rule", ["strict", "published"])
def test_names_of_somebody_else_are_judged_alike(family: str, op: int, rule: str) -> None:
    """Among them items that hold nothing, whose categories may be of any layer for what the text says."""
    settings = StreamSettings(family=FAMILIES[family], split="test", ops=(op,), retry_rate=0.2)
    drawn = [_renamed(dict(record)) for record in records(settings, 60)]
    assert sum(bool(re.search(r"so . = 0\.", record["solution"])) for record in drawn) > 5
    assert all(not CATEGORY_OF.keys() & set(record["problem"].replace("'s", "").split()) for record in drawn)
    for record in drawn:
        verdict = verdict_record(json.dumps(record), 23, rule)
        assert verdict["ok"] is True, (verdict, record)
        assert verdict["unnecessary"] == 0


def _chain(length: int) -> dict[str, str]:
    """Return a problem and its solution of `length` steps, each the value of the one before."""
    said = [" The number of each A's B0 equals 1."]
    said += [f" The number of each A's B{i} equals each A's B{i - 1}." for i in range(1, length)]
    letters = [chr(0x4E00 + i) for i in range(length)]
    steps = [f" Define A's B0 as {letters[0]}; so {letters[0]} = 1."]
    steps += [f" Define A's B{i} as {letters[i]}; so {letters[i]} = {letters[i - 1]} = 1." for i in range(1, length)]
    return {
        "problem": "".join(said) + f" How many B{length - 1} does A have?",
        "solution": "".join(steps),
        "answer": "1",
    }


def test_problems_of_any_depth_are_judged() -> None:
    for rule in ("strict", "published"):
        assert verdict_record(json.dumps(_chain(3000)), 23, rule)["ok"] is True
    held = "".join(f" The number of each I{i}'s I{i + 1} equals 1." for i in range(3000))
    deep = {"problem": f"{held} How many I1 does I0 have?", "solution": " Define I0's I1 as a; so a = 1."}
    assert verdict_record(json.dumps(deep), 23, "strict")["ok"] is True
    ring = {**deep, "problem": deep["problem"].replace("How many", "The number of each I3000's I2 equals 1. How many")}
    found = verdict_record(json.dumps(ring), 23, "strict")
    assert found["ok"] is None
    assert "holds itself" in found["reason"]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("The number of each A's B equals 1. The number of each A's B equals 2. How many B does A have?", "said twice"),
        ("The number of each A's B equals 1. How many B does A have? How many B does A have?", "not a sentence"),
    ],
)
def test_a_problem_that_contradicts_itself_cannot_be_judged(said: str, reason: str) -> None:
    line = json.dumps({"problem": said, "solution": "Define A's B as a; so a = 1.", "answer": "1"})
    verdict = verdict_record(line, 23, "strict")
    assert verdict["ok"] is None
    assert reason in verdict["reason"]


def test_modulus_of_the_line_goes_before_the_option() -> None:
    [record] = records(StreamSettings(family=NANO, ops=(3,)), 1)
    without = {key: value for key, value in record.items() if key != "modulus"}
    assert verdict_record(json.dumps(without), 5, "strict")["ok"] is True
    assert verdict_record(json.dumps(without | {"modulus": None}), 5, "strict")["ok"] is True
    assert verdict_record(json.dumps(record), 23, "strict")["ok"] is True


def test_a_dataset_of_no_documents_has_all_columns() -> None:
    empty = documents(StreamSettings(family=NANO), 0)
    assert len(empty) == 0
    [record] = records(StreamSettings(family=NANO), 1)
    assert set(empty.column_names) == set(record)


def test_datasets_hold_what_the_streams_give(tmp_path: Path) -> None:
    from peft_study.igsm import export
    from peft_study.igsm.shards import build_shards

    settings = StreamSettings(family=NANO, retry_rate=0.3)
    expected = WindowStream(settings).read(3)
    found = list(export.iterable_windows(settings).take(3))
    assert np.array_equal([row["input_ids"] for row in found], expected.ids)
    assert np.array_equal([row["kinds"] for row in found], expected.kinds)

    build_shards(settings, tmp_path / "shards", tokens=3 * NANO.max_tokens)
    mapped = export.map_windows(tmp_path / "shards")
    assert len(mapped) == 3
    assert np.array_equal(mapped["input_ids"], expected.ids)

    export.write_jsonl(settings, 5, tmp_path / "documents.jsonl")
    export.write_parquet(settings, 5, tmp_path / "documents.parquet")
    lines = [json.loads(line) for line in (tmp_path / "documents.jsonl").read_text().splitlines()]
    assert lines == list(records(settings, 5))
    from datasets import Dataset

    assert Dataset.from_parquet(str(tmp_path / "documents.parquet"), cache_dir=str(tmp_path)).to_list() == lines


def test_parts_of_an_iterable_dataset_do_not_depend_on_their_number() -> None:
    from peft_study.igsm import export

    settings = StreamSettings(family=NANO)
    whole = export.iterable_windows(settings, parts=2, windows=2)
    rows = [row["input_ids"] for row in whole]
    assert len(rows) == 4
    for part in range(2):
        shard = whole.shard(num_shards=2, index=part)
        assert [row["input_ids"] for row in shard] == rows[2 * part : 2 * part + 2]
