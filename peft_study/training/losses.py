"""Losses of the two skills. Shapes: N positions with loss, V words."""

import torch
from torch import Tensor
from torch.nn import functional


def correction_loss(logits_NV: Tensor, words_N: Tensor, weights_N: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy of the next words, in nats; with weights their weighted sum."""
    if weights_N is None:
        return functional.cross_entropy(logits_NV.float(), words_N)
    return (functional.cross_entropy(logits_NV.float(), words_N, reduction="none") * weights_N).sum()


def detection_loss(logits_N2: Tensor, wrong_N: Tensor) -> Tensor:
    """Return the mean cross-entropy of right (0) and wrong (1) under a two-way softmax, in nats.

    Written as softplus of the margin: the same number, without the loss of precision near 0.
    """
    margin_N = logits_N2[:, 1].float() - logits_N2[:, 0].float()
    return functional.binary_cross_entropy_with_logits(margin_N, wrong_N.float())


def is_converged(losses: list[float]) -> bool | None:
    """Whether a curve of validation losses has flattened: its last third brings at most a tenth of the whole fall.

    None with fewer than six points, which say nothing.

    >>> is_converged([9, 5, 3, 2.1, 2, 2]), is_converged([6, 5, 4, 3, 2, 1])
    (True, False)
    """
    if len(losses) < 6:
        return None
    fall = max(losses) - losses[-1]
    late = losses[len(losses) - 1 - len(losses) // 3] - losses[-1]
    return late <= 0.1 * fall


def probability_wrong(logits_N2: Tensor) -> Tensor:
    """Return P(wrong) under the two-way softmax."""
    return torch.sigmoid(logits_N2[:, 1].float() - logits_N2[:, 0].float())
