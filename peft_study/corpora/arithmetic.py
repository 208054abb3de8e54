r"""Arithmetic in plain text: numbers, and equations such as `48/2 = 24` that can be checked without understanding more.

An equation is read only where nothing around it can change what it says: brackets, numbers and `+ - * / x` on the left
after the start of the text, a mark or a word such as `is`; one number on the right. `half of 6 + 4 = 7`, units, a
percentage or a letter leave it unread. Numbers are exact; those with decimals may have been rounded.

>>> [equation.false for equation in equations("She sold 48/2 = 24 clips, so she has 24 + 48 = 74.")]
[False, True]
"""

import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import NamedTuple

_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_PLAIN = str.maketrans("−–×÷€£\xa0", "--*/$$ ")
"""Signs that mean the same, each of one character, so that places stay where they are."""

MAX_DIGITS, MAX_TOKENS, MAX_CHARACTERS = 30, 30, 200
"""Longer numbers, and longer left sides in numbers and signs or in characters, are not read."""


class Number(NamedTuple):
    """A number as it stands in a text, without a sign."""

    start: int
    end: int
    text: str

    @property
    def value(self) -> Fraction:
        """What it is, exactly."""
        return Fraction(self.text.replace(",", ""))

    @property
    def unit(self) -> Fraction:
        """What 1 in the last place that is written is worth."""
        return Fraction(1, 10 ** len(self.text.partition(".")[2]))


class Equation(NamedTuple):
    """An equation that could be read: an expression on the left, a number on the right."""

    expression: str
    """The left side."""
    left: tuple[Number, ...]
    """Its numbers."""
    value: Fraction
    """Of the left side, exactly."""
    bounds: tuple[Fraction, Fraction]
    """Of the left side, if its numbers with decimals were rounded."""
    sign: int
    """Of the right side, 1 or -1."""
    right: Number

    @property
    def false(self) -> bool:
        """Whether it is false however its numbers were rounded, or cut, to the places that are written."""
        low, high = self.bounds
        stated = self.sign * self.right.value
        if low - self.right.unit < stated < high + self.right.unit:
            return False
        ratio = max(abs(self.value), abs(stated)) / (min(abs(self.value), abs(stated)) or 1)
        return ratio not in _CONVERSIONS

    def value_with(self, changed: Mapping[Fraction, Fraction]) -> Fraction | None:
        """Return what the left side is with other values in the place of some; None where that divides by zero."""
        try:
            return _Expression(self.expression, 0, len(self.expression), changed).value[0]
        except _Unread:
            return None


_CONVERSIONS = {3, 4, 7, 12, 16, 24, 30, 36, 52, 60, 100, 365, 1000, 3600}
"""Sides with such a ratio may be the same in two units: `$1 / 2 = 50 cents`."""


def plain(text: str) -> str:
    """Return a text with one sign for each meaning; places stay where they are.

    >>> plain("£4 − 3")
    '$4 - 3'
    """
    return text.translate(_PLAIN)


def numbers(text: str) -> list[Number]:
    """Return the numbers of a text in order, without those that are part of a word, such as `1st`.

    >>> [number.text for number in numbers("On the 1st day, 1,200 of .5 or 3.")]
    ['1,200', '.5', '3']
    """
    found = re.finditer(rf"(?<![\w.])(?<![0-9],)(?:{_NUMBER})(?![\w]|[.,][0-9])", text)
    return [Number(match.start(), match.end(), match[0]) for match in found if len(match[0]) <= MAX_DIGITS]


def written(value: Fraction, like: Number) -> str | None:
    """Return `value` written as `like` is; None where it has no sign-free form with two decimals or those of `like`.

    >>> written(Fraction(2500), Number(0, 5, "1,200")), written(Fraction(5, 2), Number(0, 4, "1.00"))
    ('2,500', '2.50')
    >>> written(Fraction(1, 3), Number(0, 1, "4"))
    """
    places = len(like.text.partition(".")[2])
    scaled = value * 10 ** max(places, 2)
    if value < 0 or scaled.denominator != 1:
        return None
    # Four digits go with or without a comma, as those around them do.
    comma = "," if "," in like.text or like.value < 1000 <= value else ""
    whole, decimals = divmod(scaled.numerator, 10 ** max(places, 2))
    kept = f"{decimals:0{max(places, 2)}}"
    kept = kept if places else kept.rstrip("0")
    text = f"{whole:{comma}}" + (f".{kept}" if kept else "")
    return text.removeprefix("0") if like.text.startswith(".") else text


# ---- equations

_WORDS = (
    "is are was were be been has have had so because therefore thus or then means for to with only now worth "
    "totals equals leaves leaving makes make made cost costs need needs needed use uses used take takes took "
    "taken get gets got give gives gave keep keeps kept bring brings brought buy buys bought pay pays paid spend "
    "spends spent save saves saved earn earns earned sell sells sold charge charges charged receive receives "
    "received collect collects collected contribute contributed donates donated eat eats ate drink drinks drank "
    "bake bakes baked read reads write writes wrote run runs ran walk walks walked drive drives drove travel "
    "travels traveled work works worked play played sleep sleeps watch watched score scores scored win won lose "
    "loses lost catch caught pick picks picked find finds found see saw produce produces produced plant planted "
    "grow grows grew weigh weighs weighed gain gained add added carry carries hold holds contain contains cover "
    "covers perform performing additional another extra him her them"
)
_BEFORE = re.compile(
    rf"(?:\A|[:,;.!?(`]|<<|(?:\b(?:{_WORDS.replace(' ', '|')}|(?:total|sum|cost|profit) of|'s|’s)\b))\s*\Z",
    re.IGNORECASE,
)
"""What may stand before an equation. Other words can be part of what it says: `of 6 + 4`, `Weeks 1-2`."""
_INSIDE = frozenset("-+*/()$.,0123456789x \t\n")
_FIRST = re.compile(r"[0-9$(]|\.(?=[0-9])")
_TOKEN = re.compile(rf"\s*(?:\$\s*)?(?P<number>{_NUMBER})|\s*(?P<sign>[-+*/()]|x(?![a-zA-Z]))")
_RIGHT = re.compile(rf"\s*\$?\s*(?P<minus>-?)\s*\$?(?P<number>{_NUMBER})")
_AFTER = re.compile(
    r"(?:\Z|>>|[.,;!?)](?![0-9])|\s+(?=[A-Za-z(])(?!x\b|(?:cents?|percent|dozens?|hundreds?|thousands?|k|millions?|"
    r"billions?|half|halves|thirds?|quarters?|fourths?|fifths?|one|times|more|plus|minus|divided)\b))"
)


class _Unread(Exception):  # noqa: N818 - no error: what is no expression is left alone
    pass


Bounds = tuple[Fraction, Fraction, Fraction]
"""A value, and the least and the most that it can be."""


class _Expression:
    """Reads a left side by the usual precedence; `changed` puts other values in the place of some."""

    def __init__(self, text: str, start: int, end: int, changed: Mapping[Fraction, Fraction] | None = None) -> None:
        self.changed = changed or {}
        self.numbers: list[Number] = []
        self.tokens: list[Number | str] = []
        place = start
        while text[place:end].strip():
            token = _TOKEN.match(text, place, end)
            if token is None or len(self.tokens) >= MAX_TOKENS:
                raise _Unread
            place = token.end()
            if digits := token["number"]:
                # 0900 is a time of day.
                if len(digits) > MAX_DIGITS or re.match(r"0[0-9]", digits):
                    raise _Unread
                self.numbers.append(Number(*token.span("number"), digits))
                self.tokens.append(self.numbers[-1])
            else:
                self.tokens.append("*" if token["sign"] == "x" else token["sign"])
        self.tokens.append("")
        self.next = 0
        self.value = self._sum()
        # One number is no calculation, and an operator more is none that we know.
        if self.tokens[self.next] or len(self.numbers) < 2:
            raise _Unread

    def _take(self) -> Number | str:
        self.next += 1
        return self.tokens[self.next - 1]

    def _sum(self) -> Bounds:
        value = self._product()
        while (sign := self.tokens[self.next]) in ("+", "-"):
            self.next += 1
            a, (b, low, high) = value, self._product()
            value = (a[0] + b, a[1] + low, a[2] + high) if sign == "+" else (a[0] - b, a[1] - high, a[2] - low)
        return value

    def _product(self) -> Bounds:
        value, divided = self._atom(), False
        while (sign := self.tokens[self.next]) in ("*", "/"):
            self.next += 1
            other = self._atom()
            if sign == "/":
                # a / b / c may be meant as a / (b / c).
                if divided or other[1] <= 0 <= other[2]:
                    raise _Unread
                other = (1 / other[0], 1 / other[2], 1 / other[1])
            divided = sign == "/"
            corners = [x * y for x in value[1:] for y in other[1:]]
            value = (value[0] * other[0], min(corners), max(corners))
        return value

    def _atom(self) -> Bounds:
        token = self._take()
        if token == "(":
            value = self._sum()
            if self._take() != ")":
                raise _Unread
            return value
        if not isinstance(token, Number):
            raise _Unread
        value = self.changed.get(token.value, token.value)
        slack = token.unit / 2 if "." in token.text else Fraction(0)
        return value, value - slack, value + slack


def equations(text: str) -> list[Equation]:
    """Return the equations of a text that can be read, in order."""
    text = plain(text)
    return [equation for sign in re.finditer("=", text) for equation in _equation(text, sign.start())]


def _equation(text: str, sign: int) -> Iterator[Equation]:
    """Yield the equation around the `=` at `sign`, if there is one."""
    right = _RIGHT.match(text, sign + 1)
    if not right or len(right["number"]) > MAX_DIGITS or not _AFTER.match(text, right.end()):
        return
    start = sign
    while start and sign - start < MAX_CHARACTERS and text[start - 1] in _INSIDE:
        start -= 1
    start = _skip(text, start, sign)
    # A bracket may be one of the sentence.
    while text.startswith("(", start, sign) and text.count("(", start, sign) > text.count(")", start, sign):
        start = _skip(text, start + 1, sign)
    if not _BEFORE.search(text[max(0, start - 20) : start]) or re.search(r"[0-9]:\Z", text[max(0, start - 2) : start]):
        return
    try:
        left = _Expression(text, start, sign)
    except _Unread:
        return
    value, low, high = left.value
    number = Number(*right.span("number"), right["number"])
    yield Equation(text[start:sign], tuple(left.numbers), value, (low, high), -1 if right["minus"] else 1, number)


def _skip(text: str, start: int, end: int) -> int:
    """Return where an expression can begin: `start` or later."""
    found = _FIRST.search(text, start, end)
    return found.start() if found else end
