r"""Test sets known by what they ask, so that nothing is trained on them by mistake.

`leaks.txt` holds fingerprints of the questions of GSM8K's test split, MATH500, HumanEval (its docstrings) and MBPP+
(its sentences): no text, but hashes of all tokens of a question and of its first eight. A question is found where it
stands word for word in what someone says, whatever the case and the white space around words; one of fewer than 16
tokens only where it is all that is said, or a line of it. Not found are questions in other words, translated, or with
other numbers, and test problems of MATH beyond the 500.

In GSM8K's training split, questions and solutions, none is found.
"""

import re
import zlib
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from peft_study.corpora import code, gsm8k, math

FILE = Path(__file__).with_suffix(".txt")
_TOKEN = re.compile(r"\w+|[^\w\s]")
_FIRST = 8
"""Tokens by which a question is looked for."""
_LONG = 16
"""Tokens of a question that is looked for inside of texts."""


class Fingerprint(NamedTuple):
    """What is known of a question."""

    name: str
    """The test set."""
    tokens: int
    """How many tokens it has."""
    first: int
    """A hash of the first of them."""
    whole: str
    """A hash of all of them."""


def fingerprint(name: str, question: str) -> Fingerprint:
    """Return the fingerprint of a question.

    >>> fingerprint("t", "What is  2 + 2?") == fingerprint("t", "what\\nis 2+2 ?")
    True
    """
    tokens = _tokens(question)
    return Fingerprint(name, len(tokens), _first(tokens), _whole(tokens))


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(text.casefold())


def _first(tokens: list[str]) -> int:
    return zlib.crc32(" ".join(tokens[:_FIRST]).encode())


def _whole(tokens: list[str]) -> str:
    return blake2b(" ".join(tokens).encode(), digest_size=4).hexdigest()


def leak_in(text: str) -> str:
    """Return the name of a test set with a question that stands in what someone says; empty if none does."""
    tokens = _tokens(text)
    for at in range(len(tokens)):
        for question in _known().get(_first(tokens[at : at + _FIRST]), ()):
            if question.tokens >= _LONG and _whole(tokens[at : at + question.tokens]) == question.whole:
                return question.name
    # Words are asked for in programs too, where quotes stand around them.
    for line in (text, *text.splitlines()):
        tokens = _tokens(line.strip().strip("\"'"))
        for question in _known().get(_first(tokens), ()):
            if question.tokens == len(tokens) and _whole(tokens) == question.whole:
                return question.name
    return ""


@cache
def _known() -> dict[int, list[Fingerprint]]:
    """Return the fingerprints by the hash of their first tokens."""
    known: dict[int, list[Fingerprint]] = defaultdict(list)
    for line in FILE.read_text().splitlines():
        name, tokens, first, whole = line.split()
        known[int(first, 16)].append(Fingerprint(name, int(tokens), int(first, 16), whole))
    return known


# ---- making the file


def questions(folder: Path) -> Iterable[tuple[str, str]]:
    """Yield each set's name and question, from the folder of `builtin.py`."""
    yield from (("gsm8k", problem.question) for problem in gsm8k.load(folder / "gsm8k", "test"))
    yield from (("math500", problem.question) for problem in math.load(folder / "math500", "test"))
    for problem in code.humaneval(folder / "humaneval"):
        head = problem.prompt.index(f"def {problem.entry_point}")
        yield "humaneval", re.split("\"\"\"|'''", problem.prompt[head:])[1]
    for problem in code.mbpp_plus(folder / "mbpp"):
        yield "mbpp+", problem.prompt.strip().strip('"').partition("assert")[0]


def lines(folder: Path) -> list[str]:
    """Return the lines of `leaks.txt`, made anew from the data in a folder."""
    prints = [fingerprint(name, question) for name, question in questions(folder)]
    return sorted({f"{p.name} {p.tokens} {p.first:08x} {p.whole}" for p in prints})
