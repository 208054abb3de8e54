"""Detection is asked at `as` and can know nothing of what comes after it."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from peft_study.igsm.families import NANO
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.stream import WindowStream
from peft_study.igsm.text import Kind
from peft_study.igsm.tokenizer import word_ids
from peft_study.models.config import MethodConfig
from peft_study.models.learner import Learner
from peft_study.skills.config import SkillConfig
from peft_study.skills.targets import correction_targets, decision_labels
from peft_study.training.batches import make_batch
from peft_study.training.losses import probability_wrong

METHODS = [
    MethodConfig(name="full"),
    MethodConfig(name="lora", rank=2),
    MethodConfig(name="lora", rank=2, embeddings="lora_2r"),
    MethodConfig(name="probe", rank=2),
]


Asked = list[tuple[torch.Tensor, int]]


@pytest.fixture(scope="module")
def asked() -> Asked:
    """Return windows [1, T], each with a place where an `as` stands."""
    windows = WindowStream(StreamSettings(family=NANO, retry_rate=0.5)).read(3)
    ids = torch.from_numpy(windows.ids.astype(np.int64))
    return [(ids[row : row + 1], int(at)) for row, at in np.argwhere(decision_labels(windows.kinds) >= 0)]


def shaken(make_learner: Callable[..., Learner], method: MethodConfig) -> Learner:
    """Return a learner whose every part, adapters and head included, does something."""
    learner = make_learner(method).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return learner


@torch.no_grad()
def score(learner: Learner, ids: torch.Tensor, place: int) -> float:
    where = torch.zeros_like(ids, dtype=torch.bool)
    where[:, place] = True
    return float(probability_wrong(learner(ids, where, verdict=True)))


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name}-{m.embeddings}")
def test_what_comes_after_as_does_not_move_the_verdict(
    make_learner: Callable[..., Learner], method: MethodConfig, asked: Asked
) -> None:
    learner = shaken(make_learner, method)
    generator = torch.Generator().manual_seed(1)
    assert len(asked) >= 10
    for ids, place in asked:
        changed = ids.clone()
        tail = changed[:, place + 1 :]
        tail.copy_(torch.randint(len(word_ids(NANO)), tail.shape, generator=generator))
        assert score(learner, changed, place) == pytest.approx(score(learner, ids, place), abs=1e-6)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name}-{m.embeddings}")
def test_what_comes_before_as_does_move_it(
    make_learner: Callable[..., Learner], method: MethodConfig, asked: Asked
) -> None:
    learner = shaken(make_learner, method)
    for ids, place in asked:
        changed = ids.clone()
        changed[:, place - 3 : place] = changed[:, place - 3 : place] + 1  # both words of the name
        assert score(learner, changed, place) != pytest.approx(score(learner, ids, place), abs=1e-5)


def test_answers_stand_where_they_are_asked_and_labels_never_enter_the_input() -> None:
    """Correction predicts the next word from the one before; detection is asked at the `as` itself."""
    tokens = WindowStream(StreamSettings(family=NANO, retry_rate=0.5)).read(2)
    detection = make_batch(tokens, SkillConfig(name="detection"), torch.device("cpu"))
    words = list(word_ids(NANO))
    assert {words[i] for i in detection.ids_BT[detection.where_BT].tolist()} == {"as"}
    kinds_N = tokens.kinds[detection.where_BT.numpy()]
    assert set(kinds_N) == {Kind.AS, Kind.MISTAKE_AS}
    assert detection.answers_N.tolist() == (kinds_N == Kind.MISTAKE_AS).astype(int).tolist()
    correction = make_batch(tokens, SkillConfig(name="correction", mask=True), torch.device("cpu"))
    rows, columns = np.nonzero(correction_targets(tokens.kinds, masked="step"))
    assert correction.where_BT.nonzero().tolist() == [[r, c - 1] for r, c in zip(rows, columns, strict=True)]
    assert correction.answers_N.tolist() == tokens.ids[rows, columns].tolist()
    for batch in (detection, correction):
        assert np.array_equal(batch.ids_BT.numpy(), tokens.ids)
        seen = {words[i] for i in batch.ids_BT.unique().tolist()}
        assert not seen & {"[RIGHT]", "[WRONG]"}
