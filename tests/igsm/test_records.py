"""Records and verdicts: the JSON lines of the command line, there and back."""

import json
from pathlib import Path

import numpy as np
import pytest

from peft_study.igsm.families import FAMILIES, MED, NANO
from peft_study.igsm.records import document_record, records, verdict_record
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.splits import split_hash
from peft_study.igsm.stream import WindowStream, draw_document
from peft_study.igsm.verify import split_sentences


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
        ('{"problem": "x", "solution": "y", "answer": "1", "modulus": 0}', "modulus must be at least 1"),
        ('{"problem": "x", "solution": "y", "answer": "1", "modulus": "many"}', "invalid literal"),
    ],
)
def test_a_line_that_cannot_be_read_is_a_verdict(line: str, reason: str) -> None:
    verdict = verdict_record(line, 23, "strict")
    assert verdict["ok"] is None
    assert reason in verdict["reason"]


def test_modulus_of_the_line_goes_before_the_option() -> None:
    [record] = records(StreamSettings(family=NANO, ops=(3,)), 1)
    without = {key: value for key, value in record.items() if key != "modulus"}
    assert verdict_record(json.dumps(without), 5, "strict")["ok"] is True
    assert verdict_record(json.dumps(record), 23, "strict")["ok"] is True


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
