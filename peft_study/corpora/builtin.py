"""The published sets by name: where they lie, and what is in them.

In the folder that PEFT_STUDY_DATA names, or wherever `path` says:

    gsm8k/train.jsonl gsm8k/test.jsonl        math/train.jsonl  math500/test.jsonl
    humaneval/HumanEval.jsonl.gz              mbpp/MbppPlus.jsonl.gz
"""

import os
from pathlib import Path

from peft_study.corpora import code, gsm8k, math
from peft_study.corpora.code import CodeProblem
from peft_study.corpora.config import CODE
from peft_study.corpora.records import Document, Problem, Segment, Turn
from peft_study.corpora.sources import source
from peft_study.errors import ConfigError

_FOLDERS = {("math", "test"): "math500", ("mbpp+", "test"): "mbpp"}
"""Folders that are not called as the set is."""
FORMS = {"gsm8k": gsm8k.FORM, "math": math.FORM}


def where(name: str, split: str) -> str:
    """Return the folder of a built-in set in PEFT_STUDY_DATA; ConfigError where that is unset."""
    data = os.environ.get("PEFT_STUDY_DATA")
    if not data:
        raise ConfigError(
            f"corpus {name} must be found, but neither corpus.path (of a test set beside another corpus: "
            "corpus.test_path) nor PEFT_STUDY_DATA says where it is; set one of them"
        )
    return str(Path(data) / _FOLDERS.get((name, split), name))


def code_problems(name: str, path: str = "", subset: str = "") -> list[CodeProblem]:
    """Return the problems of `humaneval` or `mbpp+` from a file, a folder or the Hub."""
    path = path or where(name, "test")
    load, parse = {
        "humaneval": (code.humaneval, code.humaneval_problems),
        "mbpp+": (code.mbpp_plus, code.mbpp_plus_problems),
    }[name]
    return load(Path(path)) if Path(path).exists() else parse(source(path, "test", subset).rows)


def problems(name: str, split: str, path: str = "", subset: str = "") -> list[Problem]:
    """Return the problems of a built-in set from a folder or the Hub; those of programs have only a test split."""
    if name in CODE:
        return [problem.problem for problem in code_problems(name, path, subset)]
    module = {"gsm8k": gsm8k, "math": math}[name]
    if not path or Path(path).is_dir():
        return module.load(Path(path or where(name, split)), split)
    found = source(path, split, subset or ("main" if name == "gsm8k" else ""))
    return module.problems(found.rows, split, place=found.place)


def code_document(problem: CodeProblem) -> Document:
    """Return a programming problem as a document: the prompt, and what the reference adds to it."""
    completion = problem.solution.removeprefix(problem.prompt)
    turns = Turn("user", (Segment(problem.prompt, "prompt"),)), Turn("assistant", (Segment(completion, "text"),))
    return Document(problem.id, turns)
