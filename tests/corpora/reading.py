"""What is read off documents."""

from peft_study.corpora.records import Document


def labels(document: Document) -> list[bool]:
    """Return for each step and mistake, in order, whether it is wrong: what a detector says at the segment's end."""
    judged = [segment.kind for turn in document.turns for segment in turn.segments]
    return [kind == "mistake" for kind in judged if kind in ("step", "mistake")]
