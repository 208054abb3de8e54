"""The area under the ROC curve in many resamples of the same points, compiled: apart, since numba is slow to import."""

import numba
import numpy as np
from numpy.typing import NDArray

from peft_study.files import cache_folder

numba.config.CACHE_DIR = str(cache_folder() / f"ranking-{numba.__version__}")  # pyright: ignore


@numba.njit(cache=True)
def areas_of(
    level_P: NDArray[np.int64], wrong_P: NDArray[np.float64], group_P: NDArray[np.int64], counts_RG: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the area in each of R resamples [R]; nan where one has one class only.

    The P points are sorted by score; `level_P` numbers their distinct scores, and `counts_RG` says how often each
    resample has drawn each of G groups of points; `wrong_P` is 1 for a wrong point, else 0.
    """
    areas_R = np.full(len(counts_RG), np.nan)
    for r in range(len(counts_RG)):
        below = won = all_wrong = 0.0
        start = 0
        while start < len(level_P):
            right = wrong = 0.0
            end = start
            while end < len(level_P) and level_P[end] == level_P[start]:
                # By products: which class a point is of cannot be foreseen, and a branch would stall.
                drawn = counts_RG[r, group_P[end]]
                wrong += drawn * wrong_P[end]
                right += drawn * (1.0 - wrong_P[end])
                end += 1
            won += wrong * (below + 0.5 * right)
            below += right
            all_wrong += wrong
            start = end
        if below * all_wrong > 0:
            areas_R[r] = won / (below * all_wrong)
    return areas_R
