"""Losses worked by hand."""

import math

import pytest
import torch

from peft_study.training.losses import correction_loss, detection_loss, is_converged, probability_wrong


def test_correction_loss_by_hand() -> None:
    # softmax of (0, 0, ln 2) is (1/4, 1/4, 1/2); of (ln 3, 0, 0) it is (3/5, 1/5, 1/5).
    logits = torch.tensor([[0.0, 0.0, math.log(2)], [math.log(3), 0.0, 0.0]])
    loss = correction_loss(logits, torch.tensor([2, 1]))
    assert float(loss) == pytest.approx((math.log(2) + math.log(5)) / 2)


def test_detection_loss_by_hand() -> None:
    # Over (right, wrong): (0, ln 3) gives P(wrong) = 3/4, (ln 4, 0) gives 1/5; labels wrong and right.
    logits = torch.tensor([[0.0, math.log(3)], [math.log(4), 0.0]])
    loss = detection_loss(logits, torch.tensor([1, 0]))
    assert float(loss) == pytest.approx((-math.log(3 / 4) - math.log(4 / 5)) / 2)
    assert probability_wrong(logits).tolist() == pytest.approx([3 / 4, 1 / 5])


def test_detection_loss_is_the_cross_entropy_of_two_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, wrong = torch.randn(50, 2, generator=generator), torch.randint(2, (50,), generator=generator)
    assert float(detection_loss(logits, wrong)) == pytest.approx(float(correction_loss(logits, wrong)), rel=1e-5)


def test_detection_loss_stays_exact_where_it_is_small_or_large() -> None:
    assert float(detection_loss(torch.tensor([[-60.0, 60.0]]), torch.tensor([0]))) == pytest.approx(120)
    assert 0 < float(detection_loss(torch.tensor([[-15.0, 15.0]]), torch.tensor([1]))) < 1e-12


def test_losses_are_computed_in_fp32() -> None:
    logits = torch.tensor([[0.0, 1.0], [0.0, 2.0]], dtype=torch.bfloat16)
    for loss in (correction_loss(logits, torch.tensor([0, 1])), detection_loss(logits, torch.tensor([0, 1]))):
        assert loss.dtype == torch.float32
        assert float(loss) == pytest.approx((math.log(1 + math.e) + math.log(1 + math.exp(-2))) / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("losses", "converged"),
    [
        ([], None),
        ([5, 4, 3, 2, 1], None),  # five points say nothing
        ([6, 5, 4, 3, 2, 1], False),  # the last third brings 2 of 5
        ([9, 5, 3, 2.1, 2, 2], True),  # the last third brings 0.1 of 7
        ([11, 4, 3, 2, 1.5, 1], True),  # the last third brings 1.0 of 10: at most a tenth
        ([10.5, 4, 3, 2, 1.5, 1], False),  # 1.0 of 9.5 is more
        ([2, 2, 2, 2, 2, 2], True),
        ([1, 1, 2, 3, 4, 5], True),  # a curve that rises does not fall any more
        ([9, 8, 7, 6, 5, 4, 3, 2, 1], False),
    ],
)
def test_is_converged(losses: list[float], converged: bool | None) -> None:
    assert is_converged(losses) is converged
