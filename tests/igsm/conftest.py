"""Whatever holds of a document holds at the paper's limits too, where a step may take several operations."""

from collections.abc import Callable
from functools import partial

import pytest

from peft_study.igsm.families import NANO, FamilySettings
from peft_study.igsm.stream import Document

WIDE = NANO.model_copy(update={"parents_max": 4, "abstract_parents_max": None})


@pytest.fixture(scope="session", params=[NANO, WIDE], ids=["nano", "wide"])
def family(request: pytest.FixtureRequest) -> FamilySettings:
    """Return a family: nano, and the same with as many parents as the paper allows."""
    return request.param


@pytest.fixture(scope="session")
def make_document(make_document: Callable[..., Document], family: FamilySettings) -> Callable[..., Document]:
    """Return a function that draws one document of `family` with `op` operations."""
    return partial(make_document, family=family)
