"""Text back into structure: the inverse of `text.py`, by regular expressions on the paper's sentences.

Names are whatever stands between the words of the grammar, so solutions to problems of another generator parse
too. A reference is (owner, thing), as in: each *owner*'s *thing*.
"""

import re
from typing import NamedTuple

from peft_study.igsm.text import BACK

Reference = tuple[str, str]

OPERATORS = ("+", "-", "*")
LONGEST_NUMBER = 18
"""Digits of a number that is read as one: a model may write thousands, more than Python takes for an integer."""


class ParseError(Exception):
    """The text is outside the grammar; a caller turns it into an outcome."""


class ParsedFormula(NamedTuple):
    """The right-hand side of a sentence, by names; fields as in `problem.Formula`."""

    constant: int | None
    constant_op: str
    operation: str
    operands: tuple[Reference, ...]


class ParsedProblem(NamedTuple):
    """What a problem's text says."""

    formulas: dict[Reference, ParsedFormula]
    query: Reference


class ParsedCalculation(NamedTuple):
    """`letter = hint = numbers = result` as written: hint and numbers have one or two terms."""

    letter: str
    hint: tuple[str, ...]
    hint_operator: str
    numbers: tuple[int, ...]
    numbers_operator: str
    result: int


class ParsedStep(NamedTuple):
    """One `Define ...` sentence; `calculations` is empty for one that is taken back."""

    reference: Reference
    letter: str
    calculations: tuple[ParsedCalculation, ...]

    @property
    def retracted(self) -> bool:
        """Whether the sentence takes itself back."""
        return not self.calculations


_SENTENCE = re.compile(r"The number of each (.+?)'s (.+?) equals (.+)")
_QUESTION = re.compile(r"How many (.+) does (.+) have\?")
_REFERENCE = re.compile(r"each (.+?)'s (.+)")
_CONSTANT = re.compile(r"(\d+)(?: (more than|times as much as) (.+))?")
_MANY = re.compile(r"the (sum|difference) of (.+)")
_DEFINE = re.compile(r"Define (.+?)'s (.+) as (\[BACK\]|BACK|.)")


def _reference(text: str) -> Reference:
    found = _REFERENCE.fullmatch(text)
    if not found:
        raise ParseError(f"not a reference: {text!r}")
    return found[1], found[2]


def _formula(text: str) -> ParsedFormula:
    constant, constant_op, rest = None, "", text
    if found := _CONSTANT.fullmatch(text):
        constant = int(found[1])
        if found[3] is None:
            return ParsedFormula(constant, "", "", ())
        constant_op, rest = "+" if found[2] == "more than" else "*", found[3]
    if found := _MANY.fullmatch(rest):
        parts = re.split(r", (?=each )| and (?=each )", found[2])
        operands = tuple(map(_reference, parts))
        if len(operands) < 2 or (found[1] == "difference" and len(operands) != 2):
            raise ParseError(f"a {found[1]} of {len(operands)} terms: {rest!r}")
        return ParsedFormula(constant, constant_op, "+" if found[1] == "sum" else "-", operands)
    return ParsedFormula(constant, constant_op, "", (_reference(rest),))


def parse_problem(text: str) -> ParsedProblem:
    """Return what the problem's text says; raise ParseError where it is outside the grammar."""
    found = _QUESTION.search(text[text.rindex("How many") :] if "How many" in text else "")
    if not found:
        raise ParseError("no question")
    statement = text.replace(found[0], "", 1).strip()
    formulas: dict[Reference, ParsedFormula] = {}
    for sentence in statement.removesuffix(".").split(". "):
        match = _SENTENCE.fullmatch(sentence.strip())
        if not match:
            raise ParseError(f"not a sentence: {sentence.strip()!r}")
        if (reference := (match[1], match[2])) in formulas:
            raise ParseError(f"each {match[1]}'s {match[2]} is said twice")
        formulas[reference] = _formula(match[3])
    return ParsedProblem(formulas, (found[2], found[1]))


def _terms(text: str) -> tuple[tuple[str, ...], str]:
    parts = text.split(" ")
    if len(parts) == 1:
        return (parts[0],), ""
    if len(parts) != 3 or parts[1] not in OPERATORS:
        raise ParseError(f"not a calculation: {text!r}")
    return (parts[0], parts[2]), parts[1]


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= LONGEST_NUMBER):
        raise ParseError(f"not a number: {text[:40]!r}")
    return int(text)


def _calculation(text: str) -> ParsedCalculation:
    letter, *parts = text.split(" = ")
    if len(letter) != 1 or not letter.isalpha():
        raise ParseError(f"not a letter: {letter!r}")
    if not 1 <= len(parts) <= 3:
        raise ParseError(f"not a calculation: {text!r}")
    hint, operator = _terms(parts[0])
    result = _number(parts[-1])
    if len(parts) == 3:
        numbers, numbers_operator = _terms(parts[1])
        if len(numbers) != 2 or len(hint) != 2:
            raise ParseError(f"hint and numbers differ in length: {text!r}")
        return ParsedCalculation(letter, hint, operator, tuple(map(_number, numbers)), numbers_operator, result)
    if len(hint) != 1:
        raise ParseError(f"a sum without its numbers: {text!r}")
    return ParsedCalculation(letter, hint, "", (), "", result)


def parse_step(sentence: str) -> ParsedStep:
    """Return the step a sentence makes, given without its full stop; raise ParseError outside the grammar."""
    head, *parts = sentence.strip().split("; ")
    found = _DEFINE.fullmatch(head)
    if not found:
        raise ParseError(f"not a definition: {head!r}")
    reference, letter = (found[1], found[2]), found[3]
    if letter in (BACK, "BACK"):
        if parts:
            raise ParseError(f"a retraction that goes on: {sentence!r}")
        return ParsedStep(reference, "", ())
    if not parts or not parts[-1].startswith("so "):
        raise ParseError(f"no conclusion: {sentence!r}")
    parts[-1] = parts[-1].removeprefix("so ")
    calculations = tuple(map(_calculation, parts))
    if calculations[-1].letter != letter:
        raise ParseError(f"the letter changes from {letter!r} to {calculations[-1].letter!r}")
    return ParsedStep(reference, letter, calculations)


def split_sentences(solution: str) -> list[str]:
    """Return the sentences of a solution without their full stops; a last one that is cut keeps a mark '...'."""
    text = solution.strip()
    if not text:
        return []
    sentences = text.split(". ")
    if sentences[-1].endswith("."):
        sentences[-1] = sentences[-1][:-1]
    else:
        sentences[-1] += " ..."
    return sentences
