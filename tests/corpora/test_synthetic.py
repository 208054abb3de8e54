"""The generator's documents as texts: segments worked by hand, and the texts of the project's own export."""

from collections.abc import Callable

import pytest

from peft_study.corpora.synthetic import pair, pairs, settings_of
from peft_study.igsm.families import NANO
from peft_study.igsm.records import records
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.stream import Document, draw_document
from peft_study.skills.config import DataConfig


def test_a_document_is_cut_at_its_decisions(hand_document: Document) -> None:
    found = pair(StreamSettings(family=NANO), hand_document, "a")
    asked, answered = found.document.turns
    assert (asked.role, answered.role) == ("user", "assistant")
    assert asked.text.startswith(" [END] [PROBLEM] The number of each Elvaria's Eaglecrag equals 4 times as much")
    assert asked.text.endswith("How many Eaglecrag does Elvaria have? [SOLUTION]")
    assert [(segment.kind, segment.text) for segment in answered.segments] == [
        ("step", " Define Caldera's Highwall as"),
        ("text", " c; so c = 3."),
        ("mistake", " Define Elvaria's Highwall as"),
        ("retraction", " [BACK]."),
        ("step", " Define Elvaria's Eaglecrag as"),
        ("text", " d; so d = 4 * c = 4 * 3 = 2."),
        ("text", " [ANSWER] 2"),
    ]
    assert (found.problem.id, found.problem.answer) == ("a", "2")
    assert "[BACK]" not in found.problem.solution


@pytest.mark.parametrize("kind", ["retry", "weak", "miss"])
def test_mistakes_are_called_by_their_state(kind: str) -> None:
    """One that could be computed is taken back like a mistake, and is right where it stands."""
    settings = settings_of(DataConfig.model_validate({"kind": kind, "retry_rate": 0.5}), "train", 0)
    kinds = []
    for i, found in enumerate(pairs(settings, 30)):
        made = [s.kind for s in found.document.turns[1].segments if s.kind in ("mistake", "detour")]
        drawn = draw_document(settings, i).mistakes
        assert made == ["detour" if mistake.computable else "mistake" for mistake in drawn]
        assert sum(s.kind == "retraction" for s in found.document.turns[1].segments) == len(drawn)
        kinds += made
    assert len(kinds) > 20
    assert ("detour" in kinds) == (kind != "retry")


def test_texts_are_those_of_the_export(make_document: Callable[..., Document]) -> None:
    settings = settings_of(DataConfig(retry_rate=0.5), "validation", 5)
    for found, record in zip(pairs(settings, 5), records(settings, 5), strict=True):
        asked, answered = (turn.text for turn in found.document.turns)
        assert asked == f" [END] [PROBLEM]{record['problem']} [SOLUTION]"
        assert answered == f"{record['solution']} [ANSWER] {record['answer']}"
        assert found.problem.question == record["problem"]
        assert found.problem.answer == record["answer"]


def test_a_stream_is_that_of_its_settings() -> None:
    data = DataConfig(family="mini", order="qp", kind="weak", retry_rate=0.25)
    settings = settings_of(data, "test", 7)
    assert settings.family.name == "mini"
    assert (settings.order, settings.kind, settings.retry_rate, settings.split, settings.seed) == (
        "qp",
        "weak",
        0.25,
        "test",
        7,
    )
