"""Plain values as JSON text and back: all that passes between a program under test and its examiner.

A value is rebuilt from its content on the other side, so nothing of a program's own making goes with it: no class,
no `__eq__` that always says yes. Runs inside the sandbox too, so it needs Python's library alone.
"""

import json
from typing import Any

_LARGE = 1 << 63
"""Integers from here on go as hexadecimal: Python refuses to write or read more than 4,300 decimal digits."""


class Opaque:
    """What stands for a value that is not plain; it equals nothing."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{self.name}>"


def dumps(value: Any) -> bytes:
    r"""Return `value` as one line of JSON.

    Plain are None, booleans, numbers, texts, bytes, lists, tuples, sets and dictionaries; a subclass goes as its base.

    >>> dumps([1, (2.5, None), {"a": {3}}])
    b'[1,{"tuple":[2.5,null]},{"dict":[["a",{"set":[3]}]]}]\n'
    """
    return json.dumps(_encode(value), separators=(",", ":")).encode() + b"\n"


def loads(line: bytes) -> Any:
    """Return the value that `dumps` wrote; ValueError, TypeError or RecursionError where it wrote none.

    >>> loads(dumps([1, (2.5, None), {"a": {3}}]))
    [1, (2.5, None), {'a': {3}}]
    >>> loads(dumps({(1, 2): 10**5000}))[1, 2] == 10**5000
    True
    >>> loads(dumps(range(3)))
    <range>
    """
    return _decode(json.loads(line))


def _encode(value: Any) -> Any:
    kind = type(value)
    if value is None or kind in (bool, str, float):
        return value
    if isinstance(value, int):
        number = int.__index__(value)
        return number if -_LARGE < number < _LARGE else {"int": hex(number)}
    if kind is list:
        return [_encode(item) for item in value]
    for base, write in _WRITERS.items():
        if isinstance(value, base):
            return write(value)
    return {"opaque": kind.__name__}


# Methods of the base are called by name, so that a subclass has no say in what it is worth.
_WRITERS: dict[type, Any] = {
    str: str.__str__,
    float: float.__float__,
    list: lambda value: [_encode(item) for item in list.__iter__(value)],
    tuple: lambda value: {"tuple": [_encode(item) for item in tuple.__iter__(value)]},
    dict: lambda value: {"dict": [[_encode(key), _encode(item)] for key, item in dict.items(value)]},
    set: lambda value: {"set": [_encode(item) for item in set.__iter__(value)]},
    frozenset: lambda value: {"frozenset": [_encode(item) for item in frozenset.__iter__(value)]},
    complex: lambda value: {"complex": [complex.__complex__(value).real, complex.__complex__(value).imag]},
    bytes: lambda value: {"bytes": bytes.hex(value)},
}


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if isinstance(value, dict):
        ((kind, content),) = value.items()
        if kind not in _READERS:
            raise ValueError(f"{kind!r} is no kind of value")
        return _READERS[kind](content)
    return value


_READERS: dict[str, Any] = {
    "int": lambda content: int(content, 16),
    "tuple": lambda content: tuple(_decode(item) for item in content),
    "dict": lambda content: {_decode(key): _decode(item) for key, item in content},
    "set": lambda content: {_decode(item) for item in content},
    "frozenset": lambda content: frozenset(_decode(item) for item in content),
    "complex": lambda content: complex(*content),
    "bytes": bytes.fromhex,
    "opaque": lambda content: Opaque(str(content)),
}
