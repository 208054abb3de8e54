"""What all tests share: Hypothesis without chance, one thread, the CPU, and tiny models."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from peft_study.errors import KernelError
from peft_study.igsm.families import NANO, FamilySettings
from peft_study.igsm.mistakes import Mistake
from peft_study.igsm.problem import Formula, Parameter, Problem
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.solution import Calculation, Operand, Solution, Step
from peft_study.igsm.stream import Document, draw_document
from peft_study.igsm.tokenizer import word_ids
from peft_study.models.attention import require_kernel
from peft_study.models.base import Architecture, build_base
from peft_study.models.config import MethodConfig
from peft_study.models.learner import Learner
from tests.models.checkpoints import make_checkpoint

settings.register_profile("tests", derandomize=True, max_examples=50, database=None, deadline=None)
settings.load_profile("tests")
torch.set_num_threads(1)
# Tests that compare bits must mean the same on a machine with a GPU.
os.environ.setdefault("ACCELERATE_USE_CPU", "true")

TINY = Architecture(layers=2, width=32, heads=2, mlp_width=48, local_layers=1)


@pytest.fixture(scope="session")
def tiny() -> Architecture:
    """Return the shape of the models that tests use."""
    return TINY


@pytest.fixture(scope="session")
def kernel() -> None:
    """Skip where there is no compiler to make the attention kernel with; one that does not work fails."""
    try:
        require_kernel(16)
    except KernelError as error:
        if "no C++ compiler" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="session")
def make_document() -> Callable[..., Document]:
    """Return a function that draws one document with `op` operations."""

    def make(
        op: int,
        *,
        rate: float = 0.0,
        seed: int = 0,
        index: int = 0,
        split: str = "train",
        family: FamilySettings = NANO,
    ) -> Document:
        options = StreamSettings.model_validate(
            {"family": family, "ops": (op,), "retry_rate": rate, "seed": seed, "split": split}
        )
        return draw_document(options, index)

    return make


@pytest.fixture(scope="session")
def make_learner() -> Callable[..., Learner]:
    """Return a function that makes a learner on a tiny base; `seed` is that of the adapter."""

    def make(method: MethodConfig | None = None, *, seed: int = 0, base_seed: int = 0) -> Learner:
        base = build_base(NANO, TINY, base_seed)
        return Learner(base, method or MethodConfig(name="none"), word_ids(NANO), seed)

    return make


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the folder of a tiny checkpoint of an architecture, made once."""
    folder = tmp_path_factory.mktemp("checkpoints")

    @cache
    def make(kind: str) -> Path:
        return make_checkpoint(kind, folder / kind)

    return make


@pytest.fixture(scope="session")
def hand_document() -> Document:
    """Return a document made by hand, with one mistake.

    [PROBLEM] The number of each Elvaria's Eaglecrag equals 4 times as much as each Caldera's Highwall. The
    number of each Caldera's Highwall equals 3. The number of each Elvaria's Highwall equals the difference
    of each Elvaria's Eaglecrag and each Caldera's Highwall. How many Eaglecrag does Elvaria have?
    [SOLUTION] Define Caldera's Highwall as c; so c = 3. Define Elvaria's Highwall as [BACK]. Define
    Elvaria's Eaglecrag as d; so d = 4 * c = 4 * 3 = 2. [ANSWER] 2 [END]
    """
    asked, given, unnecessary = (Parameter(False, 0, *place) for place in ((0, 0), (1, 1), (0, 1)))
    formulas = {
        asked: Formula(4, "*", "", (given,)),
        given: Formula(3, "", "", ()),
        unnecessary: Formula(None, "", "-", (asked, given)),
    }
    problem = Problem(
        family=NANO,
        op=2,
        categories=("Kingdom", "Castle"),
        items=(("Elvaria", "Caldera"), ("Eaglecrag", "Highwall")),
        children=[[[0, 1], [1]]],
        formulas=formulas,
        parents={parameter: formula.operands for parameter, formula in formulas.items()},
        unused={},
        order=(given, asked),
    )
    first = Step(given, (Calculation("c", Operand("", 3), "", None, 3),))
    second = Step(asked, (Calculation("d", Operand("", 4), "*", Operand("c", 3), 2),))
    return Document(problem, Solution((first, second), 2), [Mistake(1, unnecessary)])
