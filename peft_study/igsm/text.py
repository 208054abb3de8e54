"""Words and text: problems and solutions rendered, and the same text split back into words.

A *word* is what the word-level tokenizer gives one id: a name, a letter, a number, a sign, or a fixed phrase of
the grammar. Each word of a document carries its *kind*, from which skills make their targets and masks.
"""

import re
from enum import IntEnum
from typing import NamedTuple

from peft_study.igsm.mistakes import Mistake
from peft_study.igsm.problem import Formula, Parameter, Problem
from peft_study.igsm.solution import Calculation, Operand, Solution, Step

END, PROBLEM, SOLUTION, ANSWER = "[END]", "[PROBLEM]", "[SOLUTION]", "[ANSWER]"
BACK, RIGHT, WRONG = "[BACK]", "[RIGHT]", "[WRONG]"
PAD = "[PAD]"
SPECIAL_WORDS = (PAD, END, PROBLEM, SOLUTION, ANSWER, BACK, RIGHT, WRONG)

PHRASES = (
    "The number of each",
    "times as much as",
    "the difference of",
    "the sum of",
    "more than",
    "How many",
    "equals",
    "Define",
    "each",
    "does",
    "have",
    "and",
    "so",
    "as",
)
LEANING_SIGNS = ("'s", ".", ";", ",", "?")
SIGNS = (*LEANING_SIGNS, "=", "+", "-", "*")
WORD_PATTERN = "|".join(
    (
        r"\[[A-Z]+\]",
        *(rf"{phrase}\b" for phrase in PHRASES),
        r"'s",
        r"[A-Za-z][A-Za-z0-9-]*",
        r"\d+",
        r"[.;,?=+\-*]",
    )
)
_WORD = re.compile(WORD_PATTERN)


class Kind(IntEnum):
    """What a word of a document is."""

    PROBLEM = 0
    """Problem, question and the marks around them: what is given."""
    SYNTAX = 1
    """Words of the solution that carry no choice: signs, `so`, marks."""
    DEFINE = 2
    """`Define`, or the [ANSWER] that ends the solution: where the next act is chosen."""
    NAME = 3
    """The parameter that is defined."""
    AS = 4
    """The `as` of a step whose parameter can be computed: a decision point labelled right."""
    NEW_LETTER = 5
    """The letter a value is bound to: free, so its loss says nothing."""
    REFERENCE = 6
    """A letter bound before."""
    CONSTANT = 7
    """A constant of the problem, in the hint."""
    OPERAND = 8
    """A value of a letter or a constant, in the numbers."""
    RESULT = 9
    """The result of an operation, or a value copied."""
    OPERATOR = 10
    """`+`, `-`, `*`."""
    FINAL = 11
    """The answer."""
    MISTAKE = 12
    """The parameter that a mistake defines."""
    MISTAKE_AS = 13
    """The `as` of a mistake whose parameter cannot be computed: a decision point labelled wrong."""
    BACK = 14
    """The retraction."""
    MISTAKE_AS_RIGHT = 15
    """The `as` of a mistake whose parameter can be computed (`weak`, `miss`): a decision point labelled right."""
    MISTAKE_DEFINE = 16
    """The `Define` of a mistake."""


class Word(NamedTuple):
    """A word and what it is."""

    text: str
    kind: Kind


def join(words: list[str]) -> str:
    """Return the text of `words`: a space before each, but for signs that lean on the word before."""
    return "".join(word if word in LEANING_SIGNS else " " + word for word in words)


def split(text: str) -> list[str]:
    """Return the words of `text`, the inverse of `join`; characters outside the grammar are dropped.

    >>> split(join(["Define", "Ashkeep", "'s", "Cellar", "as", "p", ";"]))
    ['Define', 'Ashkeep', "'s", 'Cellar', 'as', 'p', ';']
    """
    return _WORD.findall(text)


def _reference(problem: Problem, parameter: Parameter) -> list[str]:
    owner, thing = problem.names(parameter)
    return ["each", owner, "'s", thing]


def _right_hand_side(problem: Problem, formula: Formula) -> list[str]:
    operands = [_reference(problem, operand) for operand in formula.operands]
    words: list[str] = []
    if formula.constant is not None:
        words.append(str(formula.constant))
    if formula.constant_op:
        words.append("more than" if formula.constant_op == "+" else "times as much as")
    if len(operands) > 1:
        words.append("the sum of" if formula.operation == "+" else "the difference of")
    for i, operand in enumerate(operands):
        if i:
            words.append("and" if i == len(operands) - 1 else ",")
        words += operand
    return words


def sentence_words(problem: Problem, parameter: Parameter) -> list[str]:
    """Return the words of the sentence about one instance parameter."""
    owner, thing = problem.names(parameter)
    formula = problem.formulas[parameter]
    return ["The number of each", owner, "'s", thing, "equals", *_right_hand_side(problem, formula), "."]


def statement_words(problem: Problem) -> list[str]:
    """Return the words of the problem's shuffled sentences."""
    return [word for parameter in problem.formulas for word in sentence_words(problem, parameter)]


def question_words(problem: Problem) -> list[str]:
    """Return the words of the question."""
    owner, thing = problem.names(problem.query)
    return ["How many", thing, "does", owner, "have", "?"]


def problem_words(problem: Problem, order: str = "pq") -> list[str]:
    """Return problem then question (`pq`), or question then problem (`qp`)."""
    statement, question = statement_words(problem), question_words(problem)
    return statement + question if order == "pq" else question + statement


def _operand_words(operand: Operand, kind: Kind) -> tuple[Word, Word]:
    hint = Word(operand.letter, Kind.REFERENCE) if operand.letter else Word(str(operand.value), Kind.CONSTANT)
    return hint, Word(str(operand.value), kind)


def _calculation_words(calculation: Calculation) -> list[Word]:
    """Return `x = hint = numbers = result`; the hint of a bare number and the numbers of a copy are left out."""
    equals = Word("=", Kind.SYNTAX)
    words = [Word(calculation.letter, Kind.NEW_LETTER), equals]
    hint, number = _operand_words(calculation.left, Kind.OPERAND)
    result = Word(str(calculation.result), Kind.RESULT)
    if calculation.right is None:
        return [*words, hint, equals, result] if calculation.left.letter else [*words, hint]
    sign = Word(calculation.operator, Kind.OPERATOR)
    other_hint, other_number = _operand_words(calculation.right, Kind.OPERAND)
    repeated = Word(sign.text, Kind.SYNTAX)
    return [*words, hint, sign, other_hint, equals, number, repeated, other_number, equals, result]


def step_words(problem: Problem, step: Step) -> list[Word]:
    """Return the words of a step: `Define X as p; ...; so p = ...`, with its full stop."""
    own = step.calculations[-1].letter
    owner, thing = problem.names(step.parameter)
    words = [
        Word("Define", Kind.DEFINE),
        Word(owner, Kind.NAME),
        Word("'s", Kind.SYNTAX),
        Word(thing, Kind.NAME),
        Word("as", Kind.AS),
        Word(own, Kind.NEW_LETTER),
    ]
    for calculation in step.calculations[:-1]:
        words += [Word(";", Kind.SYNTAX), *_calculation_words(calculation)]
    words += [Word(";", Kind.SYNTAX), Word("so", Kind.SYNTAX)]
    # The parameter's own letter was chosen at `as`; here it is only repeated.
    words.append(Word(own, Kind.SYNTAX))
    words += _calculation_words(step.calculations[-1])[1:]
    return [*words, Word(".", Kind.SYNTAX)]


def mistake_words(problem: Problem, mistake: Mistake) -> list[Word]:
    """Return the words of a mistake that is taken back: `Define X as [BACK]`, with its full stop."""
    owner, thing = problem.names(mistake.parameter)
    return [
        Word("Define", Kind.MISTAKE_DEFINE),
        *(Word(text, Kind.MISTAKE) for text in (owner, "'s", thing)),
        Word("as", Kind.MISTAKE_AS_RIGHT if mistake.computable else Kind.MISTAKE_AS),
        Word(BACK, Kind.BACK),
        Word(".", Kind.SYNTAX),
    ]


def solution_words(problem: Problem, solution: Solution, mistakes: list[Mistake]) -> list[Word]:
    """Return the words of the solution with `mistakes` inserted."""
    words: list[Word] = []
    for i, step in enumerate(solution.steps):
        for mistake in mistakes:
            if mistake.before == i:
                words += mistake_words(problem, mistake)
        words += step_words(problem, step)
    return words


def prompt_words(problem: Problem, order: str = "pq") -> list[str]:
    """Return what a model is given: [END] [PROBLEM] problem [SOLUTION]."""
    return [END, PROBLEM, *problem_words(problem, order), SOLUTION]


def document_words(problem: Problem, solution: Solution, mistakes: list[Mistake], order: str = "pq") -> list[Word]:
    """Return a whole training document: prompt, solution, [ANSWER], answer, [END]."""
    return [
        *(Word(text, Kind.PROBLEM) for text in prompt_words(problem, order)[1:]),
        *solution_words(problem, solution, mistakes),
        Word(ANSWER, Kind.DEFINE),
        Word(str(solution.answer), Kind.FINAL),
        Word(END, Kind.SYNTAX),
    ]


def strip_retractions(words: list[str]) -> list[str]:
    """Return a solution's words without its retracted steps (`Define X as [BACK].`)."""
    kept: list[str] = []
    sentence: list[str] = []
    for word in words:
        sentence.append(word)
        if word == ".":
            if BACK not in sentence:
                kept += sentence
            sentence = []
    return kept + sentence
