"""See igsm/chance.py. A stream is an array with its one word of state."""

import math

import numpy as np
from numba import uint64

from peft_study.igsm.fast.jit import jit

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S32, _S11 = (np.uint64(shift) for shift in (30, 27, 31, 32, 11))


@jit
def mix(word: np.uint64) -> np.uint64:
    """See chance.mix."""
    word = (word ^ (word >> _S30)) * _FIRST
    word = (word ^ (word >> _S27)) * _SECOND
    return word ^ (word >> _S31)


@jit
def state_at(seed: np.uint64, index: int) -> np.uint64:
    """See chance.state_at."""
    return mix(seed ^ mix(uint64(index) + _GOLDEN))


@jit
def bits(rng):
    rng[0] += _GOLDEN
    return mix(rng[0])


@jit
def below(rng, limit):
    return np.int64(((bits(rng) >> _S32) * uint64(limit)) >> _S32)


@jit
def between(rng, low, high):
    return low + below(rng, high - low + 1)


@jit
def uniform(rng):
    return np.float64(bits(rng) >> _S11) * 2.0**-53


@jit
def gauss(rng):
    radius = math.sqrt(-2.0 * math.log(1.0 - uniform(rng)))
    return radius * math.cos(2.0 * math.pi * uniform(rng))


@jit
def weighted(rng, weights, count):
    total = 0.0
    for i in range(count):
        total += weights[i]
    left = uniform(rng) * total
    for i in range(count):
        left -= weights[i]
        if left < 0.0:
            return i
    return count - 1


@jit
def sample(rng, items, size, count):
    """Bring a sample of the first `size` items to the front."""
    for i in range(count):
        j = i + below(rng, size - i)
        items[i], items[j] = items[j], items[i]


@jit
def shuffle(rng, items, size):
    for i in range(size - 1, 0, -1):
        j = below(rng, i + 1)
        items[i], items[j] = items[j], items[i]
