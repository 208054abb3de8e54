"""What compiled code works on: rules, tables of words, and room for a problem, all of them arrays and numbers.

Parameters are numbered: instance parameters first, by layer, item and target, then the abstract ones that exist, by
level, layer and item.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

MOST_NODES = 80
"""Parameters of a problem at most: 48 instance and 24 abstract ones with four layers of four items."""
_WIDE = 8  # parents of a parameter at most: four items, each an instance parameter and an abstract one

RETRY, WEAK, WEAK_STRICT, MISS = map(np.int64, range(4))
"""Kinds of mistakes, in the order of `mistakes.MISTAKE_KINDS`."""


class Rules(NamedTuple):
    """The settings of a family and of a stream, as compiled code takes them."""

    modulus: int
    op_max: int
    official: bool
    """Whether op is drawn by the official law: a target, and problems drawn until one has it."""
    possible: NDArray[np.bool_]
    """[op]: which targets there are problems of in the split."""
    ops: Ints
    weights: NDArray[np.float64]
    """Operation counts to draw from otherwise, and how often each."""
    middle: bool
    """Style of drawing; else light."""
    ip_max: int
    parents_max: int
    abstract_parents_max: int
    """0: no limit."""
    empty_abstract: bool
    sizes: Ints
    chains: int
    subcategories: int
    names: int
    letter_pool: int
    by_template: bool
    low: int
    high: int
    """The split: bins low, ..., high - 1 of the hash modulo 23."""
    draws: int
    """Problems tried before the settings are taken for impossible."""
    tries: int
    """For one shape."""
    question_first: bool
    mistake_kind: int
    retry_rate: float


class Lexicon(NamedTuple):
    """Token ids of words, and what hashes are made of."""

    words: Ints
    """Of the words of `tables.GRAMMAR`, in that order."""
    numbers: Ints
    letters: Ints
    categories: Ints
    """[chain, category]"""
    items: Ints
    """[chain, category, sub-category, name]"""
    codes: NDArray[np.uint64]
    """What a token counts as in the hash of a problem."""
    template_codes: NDArray[np.uint64]
    """What a token counts as in the hash of a template."""
    letter_codes: NDArray[np.uint64]
    """What the first, second, ... letter of a template counts as."""


(
    W_END, W_PROBLEM, W_SOLUTION, W_ANSWER, W_BACK, W_NUMBER, W_EACH, W_OF, W_EQUALS, W_MORE, W_TIMES, W_SUM,
    W_DIFFERENCE, W_COMMA, W_AND, W_STOP, W_MANY, W_DOES, W_HAVE, W_QUESTION, W_DEFINE, W_AS, W_SEMICOLON, W_SO, W_IS,
    W_PLUS, W_MINUS, W_STAR,
) = map(np.int64, range(28))  # fmt: skip
# Kinds of words (text.Kind).
(
    PROBLEM, SYNTAX, DEFINE, NAME, AS, NEW_LETTER, REFERENCE, CONSTANT, OPERAND, RESULT, OPERATOR, FINAL, MISTAKE,
    MISTAKE_AS, BACK, MISTAKE_AS_RIGHT, MISTAKE_DEFINE,
) = map(np.int64, range(17))  # fmt: skip

COPY, PLUS, MINUS, TIMES = map(np.int64, range(4))
"""Operators."""
ZERO, ONE, TWO = map(np.int64, range(3))
"""For arguments: numba compiles a function anew for every plain number that it is called with. So are all constants."""
NOTHING, CONSTANTS = np.int64(-1), np.int64(-2)
"""No operand; the constant 0 as an operand, 1 is one below it."""
# Places in `Draft.meta`.
(INSTANCES, NODES, USED, ORDERED, LAYERS, LEAST, OPS, MISTAKES, ANSWER_VALUE) = map(np.int64, range(9))


class Draft(NamedTuple):
    """A problem in the making. Everything by node but for what is said."""

    meta: Ints
    counts: Ints
    """Items of each layer."""
    edge: NDArray[np.bool_]
    """[layer, item, item of the next layer]"""
    where: Ints
    """[node, (abstract, layer, item, target)]"""
    number: Ints
    """[abstract, layer, item, target] -> node, or -1"""
    size: Ints
    parents: Ints
    made_size: Ints
    made: Ints
    """Of abstract nodes: what they are computed from."""
    under: NDArray[np.uint64]
    """Of abstract nodes: the instance nodes they need, as bits."""
    used: Ints
    """The nodes in use, in the order in which they came into use."""
    is_used: NDArray[np.bool_]
    constant: NDArray[np.bool_]
    """Whether a random constant is among the parents."""
    order: Ints
    """The necessary nodes in the order of the solution."""
    place: Ints
    sentences: Ints
    formula: Ints
    """[node, (constant or -1, constant's operator, operation)]: 0 none, 1 plus, 2 minus, 3 times."""
    value: Ints
    letter: Ints
    letters: Ints
    """Of a solution, in the order in which they are bound."""
    names: Ints
    """Token of each item: [layer, item]; categories after them: [layer, 4]."""
    mistakes: Ints
    """[mistake, (before, node, whether it could be computed)]; room for every node at every one of 52 steps."""
    plan: Ints
    """[operation of a step, (operator, left, right, letter, result)]; see document.plan_operations."""
    lists: Ints
    """[8, MOST_NODES]: room for lists that live within a function."""


def new_draft() -> Draft:
    """Return room for a problem; one process needs one."""

    def ints(*shape: int) -> Ints:
        return np.zeros(shape, np.int64)

    nodes = MOST_NODES
    return Draft(
        meta=ints(16), counts=ints(4), edge=np.zeros((3, 4, 4), np.bool_), where=ints(nodes, 4),
        number=ints(2, 4, 4, 4), size=ints(nodes), parents=ints(nodes, _WIDE), made_size=ints(nodes),
        made=ints(nodes, _WIDE),
        under=np.zeros(nodes, np.uint64), used=ints(nodes), is_used=np.zeros(nodes, np.bool_),
        constant=np.zeros(nodes, np.bool_), order=ints(nodes), place=ints(nodes), sentences=ints(nodes),
        formula=ints(nodes, 3), value=ints(nodes), letter=ints(nodes), letters=ints(64), names=ints(4, 5),
        mistakes=ints(4096, 3), plan=ints(2 * _WIDE, 5), lists=ints(8, 4 * nodes),
    )  # fmt: skip
