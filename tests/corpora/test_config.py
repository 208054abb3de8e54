"""The config of a corpus: its defaults hold together, and test sets are refused by name."""

import pytest
from pydantic import ValidationError

from peft_study.corpora.config import CorpusConfig


def build(**values: object) -> CorpusConfig:
    return CorpusConfig.model_validate(values)


def test_the_defaults_are_clean_data() -> None:
    config = build()
    assert (config.name, config.mistakes, config.mistake_config.retry_rate) == ("igsm", "none", 0)


def test_mistakes_are_those_of_solutions_in_steps() -> None:
    config = build(name="gsm8k", mistakes="number", retry_rate=0.3, retraction="[BACK]")
    assert config.mistake_config.model_dump() == {
        "kind": "number",
        "retry_rate": 0.3,
        "retraction": "[BACK]",
        "seed": 0,
    }


@pytest.mark.parametrize(
    "values",
    [
        {"name": "humaneval"},
        {"name": "mbpp+"},
        {"name": "gsm8k", "split": "test"},
        {"name": "math", "split": "test"},
        {"name": "gsm8k", "validation": "test"},
        {"name": "math", "validation": "math"},
        {"name": "own.jsonl", "validation": "humaneval"},
        {"name": "own.jsonl", "validation": "gsm8k"},
    ],
)
def test_test_sets_are_refused_unless_allowed(values: dict[str, str]) -> None:
    with pytest.raises(
        ValidationError, match=r"is a test set, to be neither trained on nor chosen by; give it as corpus.test"
    ):
        build(**values)
    assert build(**values, allow_test_sets=True).allow_test_sets


def test_test_sets_may_be_tests() -> None:
    for values in ({"name": "gsm8k", "test": "test"}, {"name": "own.jsonl", "test": "humaneval"}, {"name": "math"}):
        assert build(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "igsm", "mistakes": "weak"}, "mistakes must be none for igsm, but is weak; set data.kind"),
        ({"name": "humaneval", "mistakes": "weak", "allow_test_sets": True}, "mistakes must be none for humaneval"),
        ({"name": "igsm", "split": "test"}, "igsm has its own splits"),
        ({"name": "igsm", "validation": "a.jsonl"}, "igsm has its own splits"),
        ({"retraction": "The answer is 3"}, "retraction must have no white space around it and no mark of an answer"),
        ({"columns": {"question": "q", "solutions": "a"}}, "Extra inputs are not permitted"),
        ({"name": "gsm8k", "retry_rate": 1}, "less than 1"),
        ({"validation_share": 1}, "less than 1"),
        ({"window": 1}, "greater than or equal to 2"),
    ],
)
def test_what_does_not_fit_together_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        build(**values)
