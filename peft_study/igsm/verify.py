"""The verifier: judges a solution from the texts alone, step by step, and names the first wrong one.

Strict rule (`accuracy`): every step can be computed when it is taken, uses the letters, constants and operation
that the problem asks for, recalls values rightly, calculates rightly, binds a free letter, and the last step
answers the question. Published rule (`accuracy_published`, Part 2.2's code): constants and the choice of operation
are not compared, only parents, arithmetic and answer. Neither counts an unnecessary step as wrong; it is counted.
"""

from collections import Counter
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import reduce

from peft_study.igsm.parse import (
    ParsedCalculation,
    ParsedFormula,
    ParsedProblem,
    ParsedStep,
    ParseError,
    Reference,
    parse_problem,
    parse_step,
    split_sentences,
)
from peft_study.igsm.solution import apply
from peft_study.igsm.vocabulary import CATEGORY_OF


class Verdict(StrEnum):
    """What is true of one sentence of a solution."""

    RIGHT = "right"
    """Computable, rightly computed, needed."""
    UNNECESSARY = "unnecessary"
    """Right, but the question does not need it."""
    RETRACTED = "retracted"
    """Taken back by [BACK]; never wrong."""
    NOT_COMPUTABLE = "not computable"
    """The parameter does not exist, or something it is computed from is not known yet."""
    REPEATED = "repeated"
    """The parameter was defined before."""
    LOOKUP = "lookup"
    """Wrong letters, constant, operation or recalled value: not what the problem or an earlier step says."""
    ARITHMETIC = "arithmetic"
    """The result is not that of the numbers."""
    LETTER = "letter"
    """The letter is bound already."""
    EARLY_STOP = "early stop"
    """The solution ends and the last step is not what was asked for."""
    ANSWER = "answer"
    """The answer given is not the value found."""
    UNPARSABLE = "unparsable"
    """Outside the grammar."""
    TRUNCATED = "truncated"
    """Cut by the length limit."""


FINE = (Verdict.RIGHT, Verdict.UNNECESSARY, Verdict.RETRACTED)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict on a whole solution."""

    steps: tuple[Verdict, ...]
    """One for each sentence up to the first wrong one, and the wrong end if there is one."""
    reason: str
    """Why the first wrong step is wrong; empty if the solution is right."""
    retries: int
    """Retractions."""
    unnecessary: int
    """Unnecessary steps."""

    @property
    def ok(self) -> bool:
        """Whether every step and the answer are right."""
        return all(verdict in FINE for verdict in self.steps)

    @property
    def outcome(self) -> Verdict:
        """RIGHT, or the verdict of the first wrong step."""
        return Verdict.RIGHT if self.ok else self.steps[-1]

    @property
    def first_departure(self) -> Verdict:
        """RIGHT if ok; else the first step that is wrong or unnecessary: where a wrong solution left the way."""
        if self.ok:
            return Verdict.RIGHT
        return next(verdict for verdict in self.steps if verdict not in (Verdict.RIGHT, Verdict.RETRACTED))

    def cut(self) -> "Judgement":
        """Return the verdict on a solution that the length limit cut: truncated, whatever else its end is."""
        if self.outcome in (
            Verdict.NOT_COMPUTABLE,
            Verdict.REPEATED,
            Verdict.LOOKUP,
            Verdict.ARITHMETIC,
            Verdict.LETTER,
        ):
            return self
        steps = self.steps if self.ok else self.steps[:-1]
        return replace(self, steps=(*steps, Verdict.TRUNCATED), reason="cut by the length limit")

    @property
    def first_wrong_step(self) -> int | None:
        """Index of the first wrong sentence, None if the solution is right."""
        return None if self.ok else len(self.steps) - 1


class _WrongError(Exception):
    """Raised by a wrong step, with what is wrong."""

    def __init__(self, verdict: Verdict, reason: str) -> None:
        super().__init__(reason)
        self.verdict = verdict
        self.reason = reason


Expression = tuple
"""A normal form: ('constant', v), ('parameter', reference), ('+', terms), ('*', factors) with terms and factors
flattened and sorted, since they commute, or ('-', left, right)."""


def _combine(operator: str, left: Expression, right: Expression) -> Expression:
    if operator == "-":
        return "-", left, right
    terms = [part for side in (left, right) for part in (side[1] if side[0] == operator else (side,))]
    return operator, tuple(sorted(terms, key=repr))


def _expected(formula: ParsedFormula) -> Expression:
    result: Expression | None = None
    for operand in formula.operands:
        leaf: Expression = ("parameter", operand)
        result = leaf if result is None else _combine(formula.operation, result, leaf)
    if formula.constant is None:
        assert result is not None
        return result
    constant: Expression = ("constant", formula.constant)
    return constant if result is None else _combine(formula.constant_op, constant, result)


def parents_of(expression: Expression) -> set[Reference]:
    """Return the parameters that an expression is computed from."""
    if expression[0] == "parameter":
        return {expression[1]}
    if expression[0] == "constant":
        return set()
    inner = expression[1] if expression[0] in "+*" else expression[1:]
    return set().union(*map(parents_of, inner))


class ProblemFacts:
    """What a problem's text says about who holds what, and so what each parameter is computed from.

    The layer of a category follows from our own vocabulary. With foreign names it is not in the text: every layer that
    fits is a candidate, and those that make a step right are kept for the rest of the solution.
    """

    def __init__(self, problem: ParsedProblem) -> None:
        self.problem = problem
        self.children: dict[str, list[str]] = {}
        for owner, thing in problem.formulas:
            self.children.setdefault(owner, []).append(thing)
        asked = [operand for formula in problem.formulas.values() for operand in formula.operands]
        # An item of the top layer that holds nothing has no sentence, but can be counted over: it has 0 of everything.
        empty = [owner for owner, thing in (*asked, problem.query) if (owner, thing) not in problem.formulas]
        self.layer = self._layers([*self.children, *empty])
        self.category_layers: dict[str, list[int]] = {}
        self.values: dict[Reference, int] = {}

    def _layers(self, owners: list[str]) -> dict[str, int]:
        """Return the layer of each item: below all that hold it."""
        layers = dict.fromkeys(owners, 0) | {thing: 0 for held in self.children.values() for thing in held}
        waiting = Counter(thing for held in self.children.values() for thing in held)
        free = [item for item in layers if not waiting[item]]
        for item in free:  # which grows
            for thing in self.children.get(item, ()):
                layers[thing] = max(layers[thing], layers[item] + 1)
                waiting[thing] -= 1
                if not waiting[thing]:
                    free.append(thing)
        if len(free) < len(layers):
            raise ParseError(f"{next(item for item in layers if waiting[item])!r} holds itself, or is in what does")
        return layers

    def _candidates(self, category: str) -> list[int]:
        if category not in self.category_layers:
            ours = {layer for item, layer in self.layer.items() if CATEGORY_OF.get(item) == category}
            foreign = not self.layer.keys() <= CATEGORY_OF.keys()
            self.category_layers[category] = sorted(ours or (set(self.layer.values()) - {0} if foreign else ()))
        return self.category_layers[category]

    def _count(self, owner: str, layer: int, category: str) -> Expression | None:
        """Return how many things of `layer` are in each `owner`, or None where the layer is not below it."""
        if self.layer[owner] >= layer:
            return None
        held = self.children.get(owner, [])
        if not held:
            # The published generator asks for these too, and writes: so p = 0.
            return "constant", 0
        total: Expression | None = None
        for thing in held:
            term: Expression = ("parameter", (owner, thing))
            if self.layer[thing] < layer:
                term = _combine("*", term, ("parameter", (thing, category)))
            total = term if total is None else _combine("+", total, term)
        return total

    def expressions(self, reference: Reference) -> list[tuple[int, Expression]]:
        """Return what `reference` may stand for, as (layer of its category or -1, expression); empty if unknown."""
        if reference in self.problem.formulas:
            return [(-1, _expected(self.problem.formulas[reference]))]
        owner, category = reference
        if owner not in self.layer or category in self.layer:
            return []
        counts = [(layer, self._count(owner, layer, category)) for layer in self._candidates(category)]
        return [(layer, count) for layer, count in counts if count is not None]

    def value(self, reference: Reference, modulus: int) -> int:
        """Return the true value of `reference`, which must be one that can be computed."""

        def value_of(expression: Expression) -> int:
            kind, inner = expression[0], expression[1:]
            if kind == "constant":
                return inner[0] % modulus
            if kind == "parameter":
                return self.values[inner[0]]
            parts = map(value_of, inner[0] if kind in "+*" else inner)
            return reduce(lambda left, right: apply(kind, left, right, modulus), parts)

        stack = [reference]
        while stack:
            expression = self.expressions(stack[-1])[0][1]
            missing = parents_of(expression) - self.values.keys()
            if not missing:
                self.values[stack.pop()] = value_of(expression)
            stack += missing
        return self.values[reference]

    def necessary(self) -> set[Reference]:
        """Return everything the question needs, itself included."""
        found: set[Reference] = set()
        stack = [self.problem.query]
        while stack:
            reference = stack.pop()
            if reference not in found:
                found.add(reference)
                stack += [parent for _, e in self.expressions(reference)[:1] for parent in parents_of(e)]
        return found


class Verifier:
    """Judges the steps of one solution, one after another; also the ground truth of a perfect detector."""

    def __init__(self, problem: str | ParsedProblem, modulus: int, *, rule: str = "strict") -> None:
        self.facts = ProblemFacts(parse_problem(problem) if isinstance(problem, str) else problem)
        self.modulus = modulus
        self.strict = rule == "strict"
        self.known: dict[Reference, int] = {}
        self.values: dict[str, int] = {}
        self.expressions: dict[str, Expression] = {}
        self.last: Reference | None = None

    def computable(self, reference: Reference) -> bool:
        """Whether `reference` exists, is not known yet, and all it is computed from is known."""
        if reference in self.known:
            return False
        return any(parents_of(e) <= self.known.keys() for _, e in self.facts.expressions(reference))

    def _term(self, text: str) -> tuple[int, Expression]:
        if text.isascii() and text.isdigit():
            return int(text), ("constant", int(text))
        if text not in self.values:
            raise _WrongError(Verdict.LOOKUP, f"letter {text!r} is not bound")
        return self.values[text], self.expressions[text]

    def _calculate(self, calculation: ParsedCalculation) -> None:
        letter = calculation.letter
        if letter in self.values:
            raise _WrongError(Verdict.LETTER, f"letter {letter!r} is bound already")
        terms = [self._term(text) for text in calculation.hint]
        if len(terms) == 1:
            value, expression = terms[0]
            if calculation.result != value:
                raise _WrongError(Verdict.LOOKUP, f"{calculation.hint[0]} is {value}, not {calculation.result}")
        else:
            for text, number, (value, _) in zip(calculation.hint, calculation.numbers, terms, strict=True):
                if number != value:
                    raise _WrongError(Verdict.LOOKUP, f"{text} is {value}, not {number}")
            operator = calculation.hint_operator
            if operator != calculation.numbers_operator:
                raise _WrongError(Verdict.LOOKUP, f"operation {operator!r} becomes {calculation.numbers_operator!r}")
            value = apply(operator, terms[0][0], terms[1][0], self.modulus)
            if calculation.result != value:
                raise _WrongError(Verdict.ARITHMETIC, f"the result is {value}, not {calculation.result}")
            expression = _combine(operator, terms[0][1], terms[1][1])
        if value >= self.modulus:
            raise _WrongError(Verdict.LOOKUP, f"{value} is not below the modulus {self.modulus}")
        self.values[letter], self.expressions[letter] = value, expression

    def _fits(self, found: Expression, expected: Expression) -> bool:
        return found == expected if self.strict else parents_of(found) == parents_of(expected)

    def take(self, step: ParsedStep) -> None:
        """Judge one step and remember it; raise with verdict and reason if it is wrong."""
        reference = step.reference
        if reference in self.known:
            raise _WrongError(Verdict.REPEATED, f"each {reference[0]}'s {reference[1]} is known already")
        candidates = self.facts.expressions(reference)
        computable = [(layer, e) for layer, e in candidates if parents_of(e) <= self.known.keys()]
        if not computable:
            why = "cannot be computed yet" if candidates else "does not exist"
            raise _WrongError(Verdict.NOT_COMPUTABLE, f"each {reference[0]}'s {reference[1]} {why}")
        for calculation in step.calculations:
            self._calculate(calculation)
        found = self.expressions[step.letter]
        fitting = [layer for layer, expected in computable if self._fits(found, expected)]
        if not fitting:
            raise _WrongError(Verdict.LOOKUP, f"each {reference[0]}'s {reference[1]} is something else in the problem")
        if fitting[0] >= 0:
            self.facts.category_layers[reference[1]] = fitting
        self.known[reference] = self.values[step.letter]
        self.expressions[step.letter] = ("parameter", reference)
        self.last = reference

    def finish(self, answer: str | None) -> None:
        """Judge the end; raise with verdict and reason if it is wrong. `answer` None leaves the answer out."""
        if self.last is None or self.last != self.facts.problem.query:
            raise _WrongError(Verdict.EARLY_STOP, "the last step is not what was asked for")
        if answer is not None and answer.strip() != str(self.known[self.last]):
            raise _WrongError(Verdict.ANSWER, f"the answer is {self.known[self.last]}, not {answer.strip()!r}")
        if not self.strict and (true := self.facts.value(self.last, self.modulus)) != self.known[self.last]:
            raise _WrongError(Verdict.ANSWER, f"the answer is {true}, not {self.known[self.last]}")


def judge(problem: str, solution: str, answer: str | None, modulus: int, *, rule: str = "strict") -> Judgement:
    """Judge `solution` and `answer` of `problem`; raises ParseError only where the problem itself is unreadable.

    `rule` is 'strict' or 'published' (module docstring). Judging stops at the first wrong step. Without an `answer` the
    last step alone says what was found.
    """
    verifier = Verifier(problem, modulus, rule=rule)
    verdicts: list[Verdict] = []
    steps: list[Reference | None] = []
    reason = ""
    sentences = split_sentences(solution)
    try:
        for sentence in sentences:
            step = parse_step(sentence)
            if not step.retracted:
                verifier.take(step)
            verdicts.append(Verdict.RETRACTED if step.retracted else Verdict.RIGHT)
            steps.append(None if step.retracted else step.reference)
        verifier.finish(answer)
    except _WrongError as wrong:
        verdicts.append(wrong.verdict)
        reason = wrong.reason
    except ParseError as error:
        verdicts.append(Verdict.UNPARSABLE)
        reason = str(error)
    needed = verifier.facts.necessary()
    for i, reference in enumerate(steps):
        if reference is not None and reference not in needed:
            verdicts[i] = Verdict.UNNECESSARY
    retries = sum(sentence.endswith((" as [BACK]", " as BACK")) for sentence in sentences)
    return Judgement(tuple(verdicts), reason, retries, Counter(verdicts)[Verdict.UNNECESSARY])
