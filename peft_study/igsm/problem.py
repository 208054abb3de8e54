"""Problems: which parameters depend on which, by what formula, and what is asked (Part 2.1, Algorithms 2-6).

Where the paper and the published code differ, this follows the published code, with which the paper's numbers
were made (docs/igsm.md has the list).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from peft_study.igsm.chance import Chance
from peft_study.igsm.families import FamilySettings
from peft_study.igsm.graphs import Shape, draw_shape, draw_structure
from peft_study.igsm.vocabulary import CHAINS

MAX_DRAWS = {"official": 400_000, "given": 20_000}
"""Draws without an acceptable problem after which the settings are reported as impossible, by the law of op.

By the official law most draws aim at too few operations, which costs next to nothing.
"""


class Parameter(NamedTuple):
    """One quantity. Instance: how many of item `target` each item `item` of `layer` holds.

    Abstract: how many things of the category of layer `target` are in each item `item` of `layer`.
    """

    abstract: bool
    layer: int
    item: int
    target: int


class Formula(NamedTuple):
    """The right-hand side of a sentence: `constant` `constant_op` the `operation` over `operands`."""

    constant: int | None
    constant_op: str
    """'+' (more than), '*' (times as much as) or '' without both a constant and operands."""
    operation: str
    """'+' (sum), '-' (difference, two operands) or '' with fewer than two operands."""
    operands: tuple[Parameter, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem with its hidden graph."""

    family: FamilySettings
    op: int
    categories: tuple[str, ...]
    items: tuple[tuple[str, ...], ...]
    children: list[list[list[int]]]
    formulas: dict[Parameter, Formula]
    """Every instance parameter, in the shuffled order of the problem's sentences."""
    parents: dict[Parameter, tuple[Parameter, ...]]
    """What each parameter in use is computed from, abstract ones included."""
    unused: dict[Parameter, tuple[Parameter, ...]]
    """What each abstract parameter that nothing is computed from would be computed from."""
    order: tuple[Parameter, ...]
    """The necessary parameters in the order of the solution; the last is asked for."""

    @property
    def query(self) -> Parameter:
        """The parameter asked for."""
        return self.order[-1]

    def names(self, parameter: Parameter) -> tuple[str, str]:
        """Return the owner's and the thing's name: each *owner*'s *thing*."""
        owner = self.items[parameter.layer][parameter.item]
        if parameter.abstract:
            return owner, self.categories[parameter.target]
        return owner, self.items[parameter.layer + 1][parameter.target]


def abstract_parents(
    children: list[list[list[int]]], parameter: Parameter, most: int | None = None, *, empty: bool = False
) -> tuple[Parameter, ...] | None:
    """Return what an abstract parameter is computed from, or None where it does not exist.

    Level 1 (its category is the next layer): the sum of its instance parameters. Above: the sum over the items
    it holds of instance parameter times the item's own abstract parameter, listed pair by pair. With `most`, those
    computed from more do not exist; without `empty` none exists that counts over an item that holds nothing.
    """
    _, layer, item, target = parameter
    held = children[layer][item]
    if not held and not empty:
        return None
    parents = [Parameter(False, layer, item, k) for k in held]
    if target > layer + 1:
        below = [Parameter(True, layer + 1, k, target) for k in held]
        if any(abstract_parents(children, abstract, most, empty=empty) is None for abstract in below):
            return None
        parents = [parent for pair in zip(parents, below, strict=True) for parent in pair]
    return None if most and len(parents) > most else tuple(parents)


def num_ops(num_parents: int) -> int:
    """Return how many operations a definition takes, given how many parents it has (a constant counts as one)."""
    return max(1, num_parents - 1)


class _Builder:
    """The state of one draw: which parameters are in use and what they depend on."""

    def __init__(self, rng: Chance, family: FamilySettings, shape: Shape) -> None:
        self.rng = rng
        self.shape = shape
        self.family = family
        self.children = draw_structure(rng, shape)
        self.parents: dict[Parameter, tuple[Parameter, ...]] = {}
        self.random_constant: set[Parameter] = set()
        self.all_instances = [
            Parameter(False, i, j, k)
            for i, layer in enumerate(self.children)
            for j, held in enumerate(layer)
            for k in held
        ]
        self.all_abstract = [
            parameter
            for level in range(1, shape.d)
            for i in range(shape.d - level)
            for j in range(len(self.children[i]))
            if self.abstract_parents(parameter := Parameter(True, i, j, i + level)) is not None
        ]

    def abstract_parents(self, parameter: Parameter) -> tuple[Parameter, ...] | None:
        """Return what an abstract parameter is computed from, or None where it does not exist in this family."""
        family = self.family
        return abstract_parents(self.children, parameter, family.abstract_parents_max, empty=family.empty_abstract)

    def closure(self, parameter: Parameter) -> dict[Parameter, tuple[Parameter, ...]]:
        """Return what comes into use with `parameter`: itself and all it needs that is not in use yet."""
        found: dict[Parameter, tuple[Parameter, ...]] = {}
        stack = [parameter]
        while stack:
            current = stack.pop()
            if current in self.parents or current in found:
                continue
            found[current] = (self.abstract_parents(current) or ()) if current.abstract else ()
            stack.extend(found[current])
        return found

    def choose_parameters(self) -> int:
        """Choose the necessary parameters (Algorithm 2) and return the operations they take at least."""
        left, used = self.shape.n, 0
        while left > 0:
            best: tuple[int, dict[Parameter, tuple[Parameter, ...]]] | None = None
            for level in range(1, self.shape.d):
                unused = [a for a in self.all_abstract if a.target - a.layer == level and a not in self.parents]
                if not unused:
                    continue
                added = self.closure(self.rng.choice(unused))
                cost = sum(num_ops(len(parents)) for parents in added.values())
                if cost > left:
                    break
                best = cost, added
            if best is None:
                break
            self.parents.update(best[1])
            left -= best[0]
            used += best[0]
        free = [instance for instance in self.all_instances if instance not in self.parents]
        extra = self.rng.sample(free, min(max(self.shape.m - used, 0), len(free)))
        self.parents.update((instance, ()) for instance in extra)
        return used + len(extra)

    def sort_parameters(self) -> list[Parameter]:
        """Order the necessary parameters, adding edges so that each is needed by the query (Algorithm 3).

        Returns nothing where that cannot be done.
        """
        rng, edge_rate, scale = self.rng, self.rng.uniform(), abs(self.rng.gauss())
        unplaced = list(self.parents)
        if not unplaced:
            return []
        waiting = dict.fromkeys(unplaced, 0)
        for parents in self.parents.values():
            for parent in parents:
                waiting[parent] += 1
        placed: list[Parameter] = []
        needed: set[Parameter] = set()

        def pick(pool: list[Parameter]) -> Parameter:
            weights = [math.exp(scale * (node.abstract + (node not in needed))) for node in pool]
            return pool[rng.weighted(weights)]

        current = rng.choice([node for node in unplaced if not waiting[node]])
        while True:
            placed.append(current)
            unplaced.remove(current)
            for parent in self.parents[current]:
                waiting[parent] -= 1
                needed.add(parent)
            if not unplaced:
                break
            free = [node for node in unplaced if not waiting[node]]
            ready = [node for node in free if node in needed]
            if not current.abstract and (not ready or rng.uniform() < edge_rate):
                chosen = pick(unplaced if ready else free)
                self.parents[current] = (chosen,)
                needed.add(chosen)
                ready = [node for node in free if node in needed]
            if not ready:
                return []
            current = rng.choice(ready)
        return placed[::-1]

    def add_operands(self, order: list[Parameter], num_ops_least: int) -> None:
        """Give instance parameters their operands, so that the solution takes `shape.s` operations (Algorithm 4)."""
        rng, most = self.rng, self.family.parents_max
        room = {node: max(min(i + 1, most) - 2, 0) for i, node in enumerate(order) if not node.abstract}
        extra = dict.fromkeys(room, 0)
        for _ in range(self.shape.s - num_ops_least):
            roomy = [node for node in room if extra[node] < room[node]]
            if not roomy:
                # The problem has fewer operations than it aims at, as in the published code.
                break
            extra[rng.choice(roomy)] += 1
        for i, node in enumerate(order):
            if node.abstract:
                continue
            degree = extra[node] + 2 if extra[node] else rng.between(1, 2)
            degree = min(degree, i + 1, most)
            kept = self.parents[node]
            if degree == i + 1:
                self.set_parents(node, tuple(order[:i]), constant=True)
                continue
            pool: list[Parameter | None] = [None, *(other for other in order[:i] if other not in kept)]
            chosen: list[Parameter | None] = list(kept)
            if len(chosen) < degree and rng.uniform() < 0.5:
                chosen.append(None)
                pool.remove(None)
            chosen += rng.sample(pool, degree - len(chosen))
            self.set_parents(node, tuple(c for c in chosen if c is not None), constant=None in chosen)

    def set_parents(self, node: Parameter, parents: tuple[Parameter, ...], *, constant: bool) -> None:
        """Fix what an instance parameter is computed from."""
        self.parents[node] = parents
        if constant:
            self.random_constant.add(node)

    def add_unnecessary(self) -> None:
        """Give every other instance parameter a formula too (Algorithm 5)."""
        rng = self.rng
        remaining = [instance for instance in self.all_instances if instance not in self.parents]
        rng.shuffle(remaining)
        independent: list[Parameter] = []
        for node in remaining:
            alone = rng.uniform() < 0.5
            pool = list(independent) if alone else [*self.parents, *self.newly_computable()]
            degree = 1
            while degree < min(len(pool) + 1, self.family.parents_max) and rng.uniform() < 0.5:
                degree += 1
            constant = degree == len(pool) + 1 or rng.uniform() < 0.5
            operands = rng.sample(pool, degree - constant)
            for operand in operands:
                self.parents.update(self.closure(operand))
            self.set_parents(node, tuple(operands), constant=constant)
            if alone:
                independent.append(node)

    def newly_computable(self) -> list[Parameter]:
        """Return the abstract parameters not in use whose instance parameters all are."""
        return [
            abstract
            for abstract in self.all_abstract
            if abstract not in self.parents and all(node.abstract for node in self.closure(abstract))
        ]

    def formula(self, node: Parameter) -> Formula:
        """Draw the wording of an instance parameter's sentence (Algorithm 6)."""
        rng, modulus = self.rng, self.family.modulus
        operands = list(self.parents[node])
        rng.shuffle(operands)
        operation = "" if len(operands) < 2 else "+" if len(operands) > 2 else rng.choice("+-")
        if node not in self.random_constant:
            return Formula(None, "", operation, tuple(operands))
        if not operands:
            return Formula(rng.below(modulus), "", "", ())
        constant_op = rng.choice("+*")
        constant = rng.between(1 if constant_op == "*" else 0, modulus - 1)
        return Formula(constant, constant_op, operation, tuple(operands))

    def total_ops(self, order: Iterable[Parameter]) -> int:
        """Return the operations of a solution that defines `order`."""
        return sum(num_ops(len(self.parents[node]) + (node in self.random_constant)) for node in order)


def _draw_names(rng: Chance, family: FamilySettings, counts: list[int]) -> tuple[tuple[str, ...], ...]:
    """Return (categories, items of layer 0, items of layer 1, ...) for layers of `counts` items."""
    chain = rng.choice(CHAINS[: family.chains])
    start = rng.below(len(chain.categories) - len(counts) + 1)
    categories = chain.categories[start : start + len(counts)]
    items = [
        tuple(rng.sample(rng.choice(category.subcategories[: family.subcategories])[: family.names], count))
        for category, count in zip(categories, counts, strict=True)
    ]
    return (tuple(category.name for category in categories), *items)


def in_order(node: Parameter, parents: tuple[Parameter, ...], place: dict[Parameter, int]) -> tuple[Parameter, ...]:
    """Return an abstract parameter's terms in the order in which the solution defines what they count.

    The order of items is not in the text, so any other order would be noise that no model can predict.
    """
    width = 1 if node.target == node.layer + 1 else 2
    terms = [parents[i : i + width] for i in range(0, len(parents), width)]
    terms.sort(key=lambda term: place.get(term[0], len(place)))
    return tuple(parent for term in terms for parent in term)


def try_problem(rng: Chance, family: FamilySettings, op: int, *, official: bool) -> Problem | None:
    """Draw a problem; None where the draw cannot be completed or has not `op` operations.

    With the `official` law a problem aims at a number of operations drawn anew, which is never too few. What cannot be
    sorted is drawn again in the same shape, so that hard shapes do not become rare.
    """
    aim = min(rng.between(1, family.op_max), rng.between(1, family.op_max)) if official else op
    if aim < op:
        return None
    shape = draw_shape(rng, family, aim)
    for _ in range(family.shape_tries):
        builder = _Builder(rng, family, shape)
        least = builder.choose_parameters()
        order = builder.sort_parameters()
        if order:
            break
    else:
        return None
    builder.add_operands(order, least)
    if builder.total_ops(order) != op:
        return None
    builder.add_unnecessary()
    counts = [len(layer) for layer in builder.children]
    counts.append(1 + max(k for held in builder.children[-1] for k in held))
    categories, *items = _draw_names(rng, family, counts)
    sentences = list(builder.all_instances)
    rng.shuffle(sentences)
    formulas = {node: builder.formula(node) for node in sentences}
    place = {node: i for i, node in enumerate(order)}
    parents = {
        node: formulas[node].operands if node in formulas else in_order(node, p, place)
        for node, p in builder.parents.items()
    }
    unused = {node: builder.abstract_parents(node) or () for node in builder.all_abstract if node not in parents}
    return Problem(family, op, categories, tuple(items), builder.children, formulas, parents, unused, tuple(order))
