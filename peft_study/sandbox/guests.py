"""The two processes of a job, once the walls are up: the program, and the examiner that asks it.

Needs Python's library alone.
"""

import builtins
import json
import os
from collections.abc import Callable
from typing import Any, NoReturn

from peft_study.sandbox.values import dumps, loads

REQUESTS, ANSWERS = 3, 4
"""Descriptors of both, each holding its own end: arguments to the program, values to the examiner."""
EXAM, VERDICT, REASONS = 5, 6, 7
"""Descriptors that the examiner has alone: from the caller, to the warden, to the caller."""
LONGEST_REASON = 300
"""Characters of a reason, so that a pipe takes it at once."""
GONE = "gone"
"""Instead of a grade: the program says no more, and the warden knows how it ended."""


# ---- the program's process


def serve(program: str, entry_point: str) -> NoReturn:
    """Run `program`, then call its function for each line of arguments, until there are no more.

    What is sent back is the program's own word for it: once it runs, nothing in this process can be trusted.
    """
    function: Any = None
    namespace: dict[str, Any] = {"__name__": "program", "__builtins__": builtins}
    failure = None
    try:
        code = compile(program, "<program>", "exec", dont_inherit=True)
    except Exception as error:
        failure = ("unparsable", _describe(error))
    else:
        try:
            exec(code, namespace)
            if entry_point and entry_point not in namespace:
                raise NameError(f"name {entry_point!r} is not defined")
            function = namespace.get(entry_point)
        except BaseException as error:
            failure = ("error", _describe(error))
    for line in os.fdopen(REQUESTS, "rb"):
        if failure:
            answer = dumps(failure)
        else:
            try:
                call = loads(line)
                answer = dumps(("value", function(*call[0], **call[1]) if call else None))
            except BaseException as error:
                answer = dumps(("error", _describe(error)))
        write(ANSWERS, answer)
    os._exit(0)


def _describe(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:LONGEST_REASON].removesuffix(": ")
    except BaseException:
        return type(error).__name__


def write(descriptor: int, data: bytes) -> None:
    """Write all of `data`."""
    while data:
        data = data[os.write(descriptor, data) :]


# ---- the examiner's process


class StoppedError(BaseException):
    """The program gave no value; no `except Exception` of a test should hide it."""

    def __init__(self, grade: str, reason: str) -> None:
        super().__init__(reason)
        self.grade, self.reason = grade, reason


class Candidate:
    """The program's function, as its examiner calls it."""

    def __init__(self, most_bytes: int) -> None:
        self._answers = os.fdopen(ANSWERS, "rb")
        self._most_bytes = most_bytes

    def start(self) -> None:
        """Wait until the program has run to its end."""
        self._ask(None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the function returns."""
        return self._ask((args, kwargs))

    def _ask(self, call: Any) -> Any:
        try:
            write(REQUESTS, dumps(call))
        except BrokenPipeError:
            raise StoppedError(GONE, "") from None
        line = self._answers.readline(self._most_bytes + 1)
        if len(line) > self._most_bytes:
            raise StoppedError("crashed", f"returned more than {self._most_bytes:,} bytes")
        if not line.endswith(b"\n"):
            raise StoppedError(GONE, "")
        try:
            kind, value = loads(line)
        except Exception:
            raise StoppedError("crashed", "wrote to the pipe of its answers") from None
        if kind != "value":
            raise StoppedError("unparsable" if kind == "unparsable" else "crashed", str(value))
        return value


def examine(most_bytes: int) -> NoReturn:
    """Read an exam, run it against the program, and write the verdict: right only if the exam's end was reached.

    `most_bytes` is the limit of one returned value.
    """
    with os.fdopen(EXAM, "rb", buffering=0) as file:
        source, data = loads(_read(file.read, int.from_bytes(_read(file.read, 8), "big")))
    write(VERDICT, b"\n")  # It is read: the program may start.
    candidate = Candidate(most_bytes)
    grade, reason = "right", ""
    try:
        candidate.start()
        exec(compile(source, "<exam>", "exec"), {"__name__": "exam", "candidate": candidate, "data": data})
    except StoppedError as stopped:
        grade, reason = stopped.grade, stopped.reason
    except AssertionError as error:
        grade, reason = "wrong", str(error) or "a test fails"
    except SystemExit as error:
        grade, reason = "broken", str(error)
    except BaseException as error:
        grade, reason = "wrong", f"a test cannot use an answer: {_describe(error)}"
    # The reason is there before anyone looks for it.
    write(REASONS, json.dumps(reason[:LONGEST_REASON]).encode() + b"\n")
    write(VERDICT, grade.encode() + b"\n")
    os._exit(0)


def _read(read: Callable[[int], bytes], size: int) -> bytes:
    """Return exactly `size` bytes: what comes after them belongs to the next examiner."""
    data = bytearray()
    while len(data) < size:
        part = read(size - len(data))
        if not part:
            raise EOFError("the caller has ended")
        data += part
    return bytes(data)
