"""MBPP+ as EvalPlus grades it (evalplus 0.3.1, `data/mbpp.py` and `eval/`): inputs made Python's, outputs compared.

This text is also the exam of every MBPP+ problem, so it needs Python's library alone and runs without imports of ours.
Unlike EvalPlus it does without numpy, for programs as for itself.
"""

import math
from collections.abc import Callable
from typing import Any


def _tuples(items: Any) -> Any:
    """Return a list, and each list in it, as tuples."""
    return tuple(map(_tuples, items)) if isinstance(items, list) else items


def _flat(items: Any) -> Any:
    """Return a list of lists as a list of tuples."""
    return [tuple(item) for item in items]


SHAPES: tuple[tuple[Callable[[list[Any]], list[Any]], str], ...] = (
    (lambda args: [tuple(arg) for arg in args], "2 116 132 143 222 261 273 394 421 424 429 470 560 579 596 616 630"),
    (lambda args: [tuple(arg) for arg in args], "726 740 744 809"),
    (lambda args: [_flat(arg) for arg in args], "63 64 70 94 120 237 272 299 409 417 438 473 614 780"),
    (lambda args: [tuple(_flat(arg)) for arg in args], "259 401 445"),
    (lambda args: [_flat(args[0]), *args[1:]], "75 413 444 753"),
    (lambda args: [tuple(args[0]), *args[1:]], "250 307 405 446 617 720 763 808"),
    (lambda args: [args[0], tuple(args[1])], "106 750"),
    (lambda args: [tuple(tuple(x) if isinstance(x, list) else x for x in args[0])], "278"),
    (lambda args: [_tuples(arg) for arg in args], "580 615 791"),
    (lambda args: [{name: tuple(row) for name, row in args[0].items()}, *args[1:]], "722"),
    (lambda args: [float(args[0]), complex(args[1])], "124"),
    (lambda args: [complex(args[0])], "252"),
)
"""How JSON became of the arguments that it cannot hold, and the numbers of the tasks where that was so."""

LEFT_OUT: dict[int, Callable[..., bool]] = {
    255: lambda colors, n: len(colors) > 3 and n > 70,
    599: lambda number: number > 99_000_000 and number != 100_000_000,
}
"""Calls that are not made, by their arguments. Mbpp/255: 5 of 112, whose outputs take up to 1 GB. Mbpp/599: 15 of 16
that sum 10^8 numbers, each for more than a second."""

NOT_NONE = {"check_str", "text_match_three", "text_starta_endb"}
"""Functions that may return anything for yes, and None or False for no."""
ANY_ORDER = {
    "similar_elements",
    "find_char_long",
    "common_in_nested_lists",
    "extract_singly",
    "larg_nnum",
    "intersection_array",
    "find_dissimilar",
    "Diff",
}
"""Functions whose outputs are compared as sets."""


def arguments(task: int, inputs: list[list[Any]]) -> list[list[Any]]:
    """Return the arguments of each call of a task, from the lists in the file.

    >>> arguments(750, [[[5], [9, 10]]])
    [[[5], (9, 10)]]
    """
    convert = next((convert for convert, tasks in SHAPES if str(task) in tasks.split()), list)
    left_out = LEFT_OUT.get(task)
    return [args for args in map(convert, inputs) if not (left_out and left_out(*args))]


def same(name: str, args: list[Any], got: Any, expected: Any, atol: float) -> bool:
    """Return whether function `name` may return `got` where the reference returns `expected`.

    >>> same("f", [], 0.1 + 0.2, 0.3, 0), same("f", [], (1, 2), [1, 2], 0), same("Diff", [], [2, 1], [1, 2], 0)
    (True, False, True)
    """
    if name in ANY_ORDER:
        return set(got) == set(expected)
    if name in NOT_NONE:
        return (got if isinstance(got, bool) else got is not None) == (expected is not None)
    if got == expected or _second_reading(name, args, got, atol):
        return True
    if atol == 0 and _is_floats(expected):
        atol = 1e-6
    return atol != 0 and type(got) is type(expected) and _close(got, expected, atol)


def _is_floats(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(item, float) for item in value)
    return isinstance(value, float)


def _close(got: Any, expected: Any, atol: float) -> bool:
    """Return what `numpy.allclose(got, expected, rtol=1e-7, atol=atol)` would, of numbers and lists of numbers."""
    if isinstance(expected, list | tuple):
        if not isinstance(got, list | tuple) or len(got) != len(expected):
            return False
        return all(_close(a, b, atol) for a, b in zip(got, expected, strict=True))
    return got == expected or abs(got - expected) <= atol + 1e-7 * abs(expected)


def _second_reading(name: str, args: list[Any], got: Any, atol: float) -> bool:
    """Return whether `got` is right where the text of the task can be read in a second way."""
    if name == "surface_Area":  # Mbpp/581: the height of a pyramid is that of its apex, not of its sides.
        base, height = args
        return abs(got - round(base**2 + 2 * base * math.hypot(base / 2, height))) <= atol
    if name == "digit_distance_nums":  # Mbpp/558: the shorter number is filled with zeros.
        first, second = map(str, args)
        width = max(len(first), len(second))
        pairs = zip(first.zfill(width), second.zfill(width), strict=True)
        return got == sum(abs(int(a) - int(b)) for a, b in pairs)
    return False


def examine(candidate: Callable[..., Any], name: str, reference: str, calls: list[list[Any]], atol: float) -> None:
    """Compare `candidate` with function `name` of the reference solution; AssertionError at the first difference."""
    try:
        namespace: dict[str, Any] = {}
        exec(reference, namespace)
        trusted = namespace[name]
    except Exception as error:
        raise SystemExit(f"the reference solution does not run: {error!r}") from error
    for i, args in enumerate(calls):
        # The candidate gets a copy, so what the reference does to its arguments comes after.
        got = candidate(*args)
        shown = ", ".join(repr(arg)[:40] for arg in args)
        try:
            expected = trusted(*args)
        except Exception as error:
            raise SystemExit(f"the reference solution fails on call {i}, ({shown}): {error!r}") from error
        if not same(name, args, got, expected, atol):
            raise AssertionError(f"call {i}: {name}({shown}) gave {repr(got)[:60]}, not {repr(expected)[:60]}")
