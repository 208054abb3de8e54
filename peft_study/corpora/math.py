r"""MATH: competition problems with solutions in LaTeX, loaded, cut into sentences and graded by math-verify.

Rows are those of https://github.com/hendrycks/math (MIT) as the Hub has them, or of MATH500:

    problem: If $f(x) = \frac{3x-2}{x-2}$, what is ...
    solution: $f(-2)+f(-1)+f(0)=\frac{3(-2)-2}{-2-2}+...=\boxed{\frac{14}{3}}$
    answer: \frac{14}{3}                          (else what is in the last \boxed{} of the solution)
    unique_id: test/algebra/2584.json             (else the problem is known by its row)

Two answers are the same if math-verify says so, which is lenient: `1+1` is 2, `x=5` is 5, `2,1` is `1,2`, units do not
count, and decimals do to six places. Words are compared as words, not as products of letters. An expression can take
any time and memory to compare, so that is done in a process of its own.
"""

import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from peft_study.corpora.arithmetic import Number
from peft_study.corpora.records import Problem
from peft_study.corpora.rows import find_split, read_rows, texts
from peft_study.corpora.steps import Form
from peft_study.errors import ConfigError, DataError
from peft_study.records import Grade

# ---- loading


def load(folder: Path, split: str) -> list[Problem]:
    """Return the problems of a split from `folder`; DataError where a file or a row is not as published."""
    file = find_split(folder, split)
    return problems(read_rows(file), split, place=f"{file}, line")


def problems(rows: Iterable[Mapping[str, Any]], split: str, *, place: str = "MATH, row") -> list[Problem]:
    """Return the problems of rows; `place` begins the message of the DataError that a bad row gives."""
    loaded = []
    for i, row in enumerate(rows):
        question, solution = texts(row, f"{place} {i + 1}", "problem", "solution")
        if "answer" in row:
            (answer,) = texts(row, f"{place} {i + 1}", "answer")
        elif (found := read_answer(solution)) is None:
            end = solution[-40:]
            raise DataError(f"{place} {i + 1}: `solution` must hold \\boxed{{}}, but ends with {end!r}; get it anew")
        else:
            answer = found
        name = str(row.get("unique_id") or f"{split}/{i}").removesuffix(".json")
        loaded.append(Problem(f"math/{name}", question, solution, answer))
    return loaded


# ---- steps

_OPENING = re.compile(r"\\[\\$]|\[asy\]|\\begin\{(?P<name>[a-zA-Z]+\*?)\}|\\\[|\\\(|\$\$?")
_CLOSING = {"[asy]": r"\[/asy\]", r"\[": r"\\\]", r"\(": r"\\\)", "$$": r"\$\$", "$": r"\$"}
_ENDED = re.compile(r"[.!?]\s*(?:\\end\{[a-zA-Z]+\*?\}\s*)*(?:\$\$?|\\[\])])\Z|[.!?]\s*(?:\\end\{[a-zA-Z]+\*?\}\s*)+\Z")

_INLINE, _DISPLAY, _DISPLAY_ENDED, _FIGURE = "\ue000", "\ue001", "\ue002", "\ue003"
"""What stands for a character of mathematics while sentences are looked for."""
_BOUNDARY = re.compile(
    # A sentence, in words or ending in mathematics, but not an abbreviation, an initial or the number of an item.
    rf"(?<=[.!?])(?<!\bi\.e\.)(?<!\be\.g\.)(?<!\b[A-Z]\.)(?<!\bvs\.)(?<!\bcf\.)(?<!\betc\.)(?<!\bno\.)(?<!\n[0-9]\.)"
    rf"(?<!\bFig\.)(?<!\bEq\.)[)\]\"'’”]*(?=\s+[^a-z\s{_FIGURE}])"
    # A display that ends a sentence, whatever follows; or one after which a sentence begins.
    rf"|(?<={_DISPLAY_ENDED})[)\"'’”]*(?=\s*[^\s)\"'’”,;a-z{_DISPLAY_ENDED}{_FIGURE}])"
    rf"|(?<={_DISPLAY})(?=\s*[A-Z](?:\s|[a-z]))"
    # A paragraph, unless what follows goes on with it.
    rf"|(?<=[^\s:,])(?=[^\S\n]*\n[^\S\n]*\n\s*[^\sa-z{_FIGURE}])"
    rf"|(?<={_FIGURE})(?=\s*\n\s*[^\s{_FIGURE}])"
)


def _spans(text: str) -> list[tuple[int, int, str]]:
    """Return where mathematics and figures start and end, outermost only, and what opens each."""
    spans, place = [], 0
    while opening := _OPENING.search(text, place):
        place = opening.end()
        if opening[0] in (r"\\", r"\$"):
            continue
        depth, name = 1, opening["name"]
        inner = (
            rf"(?P<open>\\begin\{{{re.escape(name)}\}})|\\end\{{{re.escape(name)}\}}" if name else _CLOSING[opening[0]]
        )
        for found in re.compile(rf"\\\\|\\\$|(?P<bracket>{inner})").finditer(text, place):
            if found["bracket"]:
                depth += 1 if name and found["open"] else -1
            if not depth:
                place = found.end()
                break
        else:
            place = len(text)
        spans.append((opening.start(), place, opening[0]))
    return spans


def _masked(text: str) -> str:
    """Return a text of the same length whose mathematics has no marks, except one at its end that ends a sentence."""
    parts, place = [], 0
    for start, end, opening in _spans(text):
        parts.append(text[place:start])
        ended = _ENDED.search(text[max(start, end - 80) : end])
        if opening == "[asy]":
            parts.append(_FIGURE * (end - start))
        elif opening in ("$", r"\("):
            parts.append(_INLINE * (end - start - 1) + ("." if ended else _INLINE))
        else:
            parts.append(_DISPLAY * (end - start - 1) + (_DISPLAY_ENDED if ended else _DISPLAY))
        place = end
    return "".join(parts) + text[place:]


def cut(solution: str) -> list[str]:
    r"""Return the sentences and paragraphs, each with the white space before it, never cut inside of mathematics.

    A figure belongs to what stands before it; what follows the last step belongs to that.

    >>> cut("We have $x = 3.$  Also,\n\\[y = 4.\\]Then it is $7$, i.e. $\\boxed{7}.$")
    ['We have $x = 3.$', '  Also,\n\\[y = 4.\\]', 'Then it is $7$, i.e. $\\boxed{7}.$']
    """
    ends = [match.end() for match in _BOUNDARY.finditer(_masked(solution))]
    pieces = [solution[start:end] for start, end in zip([0, *ends], [*ends, len(solution)], strict=True)]
    steps: list[str] = []
    for piece in pieces:
        # White space alone is no step.
        if steps and not (piece.strip() and steps[-1].strip()):
            steps[-1] += piece
        elif piece:
            steps.append(piece)
    return steps


def is_answer(step: str) -> bool:
    """Return whether a step gives the final answer."""
    return bool(_BOX.search(step) or _MINERVA.search(step))


_CHANGEABLE = re.compile(
    r"(?<![\w.^_\\}\[])(?:[0-9]{1,3}(?:,[0-9]{3})+(?!\s*(?:[)\]]|\\\}|\\right))|[0-9]+)(?:\.[0-9]+)?"
    r"(?![0-9]|[.,][0-9]|st|nd|rd|th)"
)
"""`[-500,500]` and `(12,102)` hold two numbers, `\\$66,200` one."""


def numbers(step: str) -> list[Number]:
    r"""Return the numbers of a step, less those of figures and those that LaTeX reads digit by digit.

    >>> [number.text for number in numbers(r"$\frac12 + 3x^2 = \frac{4}{5}$ on the 6th")]
    ['3', '4', '5']
    """
    figures = [(start, end) for start, end, opening in _spans(step) if opening == "[asy]"]
    found = (Number(match.start(), match.end(), match[0]) for match in _CHANGEABLE.finditer(step))
    return [number for number in found if not any(start <= number.start < end for start, end in figures)]


def is_usable(step: str) -> bool:
    """Return whether a step says something that can be put elsewhere: no final answer, no figure, no mere `OR`."""
    return not is_answer(step) and "[asy]" not in step and len(step.strip()) >= 8


FORM = Form(cut, is_answer, is_usable, " ", numbers, None)


# ---- grading

_BOX = re.compile(r"\\(?:boxed|fbox)(?:\s*(?P<brace>\{)|\s+(?P<bare>[^\s${}]+))")
_MINERVA = re.compile(
    r"final answer is:?\s*(?:\$(?P<math>[^$\n]+)\$|(?P<plain>[^\s$][^\n$]*?)\.?\s*(?:I hope|\n|\Z))", re.IGNORECASE
)
_END = re.compile(r"(?<!\\right)\.\s*\Z")

MAX_CHARACTERS = 1000
"""Longer answers are not compared; the longest of MATH500 has 53 characters."""


def read_answer(text: str) -> str | None:
    r"""Return what is in the last `\boxed{}` or, without any, after the last `final answer is`; None without either.

    >>> read_answer(r"It is $\boxed{\frac{1}{2}}.$"), read_answer("The final answer is $0.5$. I hope it is correct.")
    ('\\frac{1}{2}', '0.5')
    """
    boxes, answers = list(_BOX.finditer(text)), list(_MINERVA.finditer(text))
    if not boxes:
        found = (answers[-1]["math"] or answers[-1]["plain"]) if answers else None
    elif boxes[-1]["brace"]:
        found = _braced(text, boxes[-1].end())
    else:
        found = boxes[-1]["bare"]
    found = _END.sub("", found or "").strip()
    return found or None


def _braced(text: str, start: int) -> str | None:
    """Return what stands between the brace that opens before `start` and the one that closes it; None if none does."""
    depth = 1
    for found in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(found[0], 0)
        if not depth:
            return text[start : start + found.start()]
    return None


class MathGrader:
    """Grades answers, each within limits of time and memory; a context manager, to be used by one thread at a time.

    The process that compares starts with the first answer, and again after one that broke a limit: half a second.
    """

    def __init__(self, *, seconds: float = 3.0, memory_mib: int = 1024) -> None:
        """Make a grader; `seconds` of the processor and MiB of memory are the limits of one answer."""
        self.seconds, self.memory_mib = seconds, memory_mib
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process that compares, if there is one."""
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def grade(self, problem: Problem, text: str, *, truncated: bool = False) -> Grade:
        """Return what became of a text; `truncated` says that the model was stopped before it had ended.

        `timed_out` is an answer that took too long to compare. One that cannot be read as mathematics is `unparsable`;
        one that runs out of memory is that or `wrong`.
        """
        answer = read_answer(text)
        if answer is None:
            return Grade.TRUNCATED if truncated else Grade.UNPARSABLE
        # Most right answers are written as the reference is; nothing needs to be known of them.
        if answer.split() == problem.answer.split():
            return Grade.RIGHT
        return self.compare(problem.answer, answer)

    def compare(self, reference: str, answer: str) -> Grade:
        """Return whether an answer, in LaTeX, is the same as the reference."""
        if len(answer) > MAX_CHARACTERS:
            return Grade.UNPARSABLE
        if words := _words(reference):
            return Grade.RIGHT if _words(answer) == words else Grade.WRONG
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = self._start()
        process = self._process
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps([reference, answer]) + "\n")
        process.stdin.flush()
        verdict = process.stdout.readline().strip()
        if verdict:
            return Grade(verdict)
        killed = process.wait() == -signal.SIGPROF
        self.close()
        return Grade.TIMED_OUT if killed else Grade.UNPARSABLE

    def _start(self) -> subprocess.Popen[str]:
        code = "import sys; sys.path.insert(0, sys.argv[1]); from peft_study.corpora import math; math.serve()"
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(Path(__file__).parents[2]), str(self.seconds), str(self.memory_mib)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # The order in which expressions are tried must not depend on chance.
            env=os.environ | {"PYTHONHASHSEED": "0"},
        )
        assert process.stdout
        if process.stdout.readline() != "ready\n":
            process.kill()
            process.communicate()
            raise ConfigError(
                f"memory_mib must be enough to start math-verify, but {self.memory_mib} is not; raise it, "
                "or see whether `import math_verify` works"
            )
        return process


_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mbox)\{([^{}]*)\}")
_LETTERS = re.compile(r"[^\W\d_]+")
_PLAIN_WORDS = re.compile(r"[^\W\d_]+(?:[ '’-]+[^\W\d_]+)*")


def _words(answer: str) -> str:
    r"""Return an answer that is nothing but words, in small letters; empty where it may be an expression.

    >>> [_words(answer) for answer in (r"\text{New  York}", "Yes.", "xyz", "p-q", "x+1")]
    ['new york', '', '', '', '']
    """
    text = " ".join(_TEXT.sub(r"\1", answer).casefold().split()).strip("$. ")
    # What has shorter runs of letters alone may be a product or a difference.
    is_text = _PLAIN_WORDS.fullmatch(text) and any(len(run) > 3 for run in _LETTERS.findall(text))
    return text if is_text else ""


def serve() -> None:
    """Compare answers until there are no more: what the process of a `MathGrader` does."""
    seconds, memory_mib = float(sys.argv[2]), int(sys.argv[3])
    verdicts = os.fdopen(os.dup(1), "w")
    # Libraries may print.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    resource.setrlimit(resource.RLIMIT_AS, (memory_mib << 20, memory_mib << 20))
    if _same("2", "1+1") != Grade.RIGHT:
        return
    print("ready", file=verdicts, flush=True)
    for line in sys.stdin:
        # Its signal ends the process, even in the middle of a product of two giant numbers, which no handler could.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        verdict = _same(*json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(verdict, file=verdicts, flush=True)


def _same(reference: str, answer: str) -> Grade:
    """Return whether math-verify takes two answers for the same; `unparsable` where it cannot read the second."""
    import math_verify  # 0.3 s and sympy, for those who grade

    config = [math_verify.LatexExtractionConfig(boxed_match_priority=0)]
    # Its own limits of time are handlers of signals, which cannot stop everything.
    known, given = (math_verify.parse(f"\\boxed{{{text}}}", config, parsing_timeout=0) for text in (reference, answer))
    if math_verify.verify(known, given, timeout_seconds=0):
        return Grade.RIGHT
    read = [not all(isinstance(item, str) for item in items) for items in (known, given)]
    return Grade.WRONG if read[1] or (given and not read[0]) else Grade.UNPARSABLE
