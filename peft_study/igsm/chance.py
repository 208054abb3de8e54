"""Chance: the random draws of problems, the same in plain Python and in compiled code.

The generator is SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): one 64-bit word of state, so that the start of any
document of a stream is found by arithmetic. `fast/chance.py` makes the very same draws.
"""

import math
from collections.abc import MutableSequence, Sequence
from typing import TypeVar

Item = TypeVar("Item")

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mix(word: int) -> int:
    """Return the 64-bit hash of a 64-bit word that SplitMix64 puts out for that state."""
    word = ((word ^ (word >> 30)) * _FIRST) & MASK
    word = ((word ^ (word >> 27)) * _SECOND) & MASK
    return word ^ (word >> 31)


def state_at(seed: int, index: int) -> int:
    """Return the state that the draws of `index` begin with in the stream of a 64-bit `seed`."""
    return mix((seed ^ mix((index + GOLDEN) & MASK)) & MASK)


class Chance:
    """A stream of random draws. `state` is all there is to it."""

    __slots__ = ("state",)

    def __init__(self, state: int) -> None:
        self.state = state & MASK

    def bits(self) -> int:
        """Return 64 random bits."""
        self.state = (self.state + GOLDEN) & MASK
        return mix(self.state)

    def below(self, limit: int) -> int:
        """Return one of 0, ..., limit - 1; uneven by less than `limit` / 2^32."""
        return ((self.bits() >> 32) * limit) >> 32

    def between(self, low: int, high: int) -> int:
        """Return one of low, ..., high."""
        return low + self.below(high - low + 1)

    def uniform(self) -> float:
        """Return a number in [0, 1)."""
        return (self.bits() >> 11) * 2.0**-53

    def gauss(self) -> float:
        """Return a standard normal number (Box and Muller)."""
        radius = math.sqrt(-2.0 * math.log(1.0 - self.uniform()))
        return radius * math.cos(2.0 * math.pi * self.uniform())

    def choice(self, items: Sequence[Item]) -> Item:
        """Return one of `items`."""
        return items[self.below(len(items))]

    def weighted(self, weights: Sequence[float]) -> int:
        """Return an index, each as often as its weight."""
        total = 0.0
        for weight in weights:
            total += weight
        left = self.uniform() * total
        for i, weight in enumerate(weights):
            left -= weight
            if left < 0.0:
                return i
        return len(weights) - 1

    def sample(self, items: Sequence[Item], count: int) -> list[Item]:
        """Return `count` of `items` in random order, none twice."""
        pool = list(items)
        for i in range(count):
            j = i + self.below(len(pool) - i)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:count]

    def shuffle(self, items: MutableSequence[Item]) -> None:
        """Put `items` into random order."""
        for i in range(len(items) - 1, 0, -1):
            j = self.below(i + 1)
            items[i], items[j] = items[j], items[i]
