"""Write tests/golden/nano_documents.txt anew: `python tests/golden/update.py`, after a change that is meant.

Everything published was made from these documents: a change here makes old and new results incomparable, so it
belongs into CHANGELOG.md.
"""

from pathlib import Path

from peft_study.igsm.families import NANO
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.stream import document_tokens, draw_document
from peft_study.igsm.text import document_words, join

GOLDEN = Path(__file__).with_name("nano_documents.txt")


def render() -> str:
    """Return 20 documents as text and as ids: every op, both orders, clean and with mistakes, every split."""
    lines: list[str] = []
    for number in range(20):
        settings = StreamSettings.model_validate(
            {
                "family": NANO,
                "split": ("train", "validation", "test")[number % 3],
                "order": ("pq", "qp")[number // 2 % 2],
                "ops": (number % 6 + 1,),
                "retry_rate": (0.0, 0.2, 0.5)[number // 6 % 3],
                "seed": number // 10,
            }
        )
        document = draw_document(settings, number)
        words = document_words(document.problem, document.solution, document.mistakes, settings.order)
        tokens = document_tokens(settings, document)
        asked = settings.model_dump(include={"split", "order", "ops", "retry_rate", "seed"})
        lines += [
            f"# {number}: " + ", ".join(f"{key}={value}" for key, value in asked.items()),
            join([word.text for word in words]),
            "ids " + " ".join(map(str, tokens.ids.tolist())),
            "kinds " + " ".join(map(str, tokens.kinds.tolist())),
            "",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    GOLDEN.write_text(render(), encoding="utf-8")
    print(f"wrote {GOLDEN}")
