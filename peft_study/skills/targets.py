"""Targets and masks of the two skills, made from the kinds of the same tokens.

Shapes: B windows, T tokens of a window.
"""

import numpy as np
from numpy.typing import NDArray

from peft_study.igsm.text import Kind

RIGHT, WRONG, NOT_A_DECISION = 0, 1, -1


MASKED: dict[str, tuple[Kind, ...]] = {
    "none": (),
    "name": (Kind.MISTAKE,),
    "step": (Kind.MISTAKE, Kind.MISTAKE_DEFINE, Kind.MISTAKE_AS, Kind.MISTAKE_AS_RIGHT),
}
"""What of a mistake has no loss: nothing, the parameter's name, or `Define X as` (both in the published code)."""


def correction_targets(kinds_BT: NDArray[np.uint8], *, masked: str) -> NDArray[np.bool_]:
    """Return which tokens have loss: the solution, less what of mistakes is `masked` (a key of MASKED)."""
    targets = kinds_BT != Kind.PROBLEM
    for kind in MASKED[masked]:
        targets &= kinds_BT != kind
    # The first token of a window has nothing before it to be predicted from.
    targets[..., 0] = False
    return targets


def decision_labels(kinds_BT: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Return RIGHT or WRONG at decision points (the `as` of a step), NOT_A_DECISION elsewhere."""
    labels = np.full(kinds_BT.shape, NOT_A_DECISION, np.int8)
    labels[(kinds_BT == Kind.AS) | (kinds_BT == Kind.MISTAKE_AS_RIGHT)] = RIGHT
    labels[kinds_BT == Kind.MISTAKE_AS] = WRONG
    return labels


def after_retraction(kinds_T: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return, for each token of one document, whether a retraction stands before it."""
    return np.cumsum(kinds_T == Kind.BACK) - (kinds_T == Kind.BACK) > 0
