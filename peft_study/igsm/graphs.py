"""The structure graph: which items hold which items (Part 2.1, Algorithm 1)."""

import math
from dataclasses import dataclass
from itertools import pairwise

from peft_study.igsm.chance import Chance
from peft_study.igsm.families import FamilySettings


@dataclass(frozen=True, slots=True)
class Shape:
    """Hyper-parameters of one problem, named as in Part 2.1, Algorithm 7."""

    s: int
    """Operations aimed at."""
    n: int
    """Operations granted to abstract parameters."""
    m: int
    """Operations granted before extra operands are added."""
    d: int
    """Layers."""
    w0: int
    """Fewest items of a layer."""
    w1: int
    """Most items of a layer."""
    e: int
    """Edges, that is instance parameters."""
    p: float
    """Probability to add a vertex where none is needed."""


def draw_shape(rng: Chance, family: FamilySettings, s: int) -> Shape:
    """Draw the hyper-parameters of a problem that aims at `s` operations (paper: Algorithm 7)."""
    first, second = rng.between(1, s), rng.between(1, s)
    if family.style == "middle":
        n, m = min(first, second), max(first, second)
    else:
        n = max(first, second)
        m = rng.between(n, s)
    relative = (s - 1) / (family.ip_max - 1)
    away = [relative - centre for centre in (0.2, 0.5, 0.8)[: len(family.sizes)]]
    weights = [math.exp(-(distance * distance)) for distance in away]
    d, first, second = (family.sizes[rng.weighted(weights)] for _ in range(3))
    w0, w1 = min(first, second), max(first, second)
    p = rng.uniform()
    low, high = (d - 1) * w0, max((d - 1) * w0, family.ip_max)
    e = min(rng.between(low, high), rng.between(low, high), (d - 1) * w1 * w1)
    return Shape(s, n, m, d, w0, w1, e, p)


def draw_structure(rng: Chance, shape: Shape) -> list[list[list[int]]]:
    """Return children[layer][item] = items of the next layer that it holds, ascending; the last layer has none.

    Items are added until `shape.e` edges fit and, beyond that, with probability `shape.p`; every item but
    those of the top layer gets one parent, the other edges are drawn without replacement.
    """
    counts = [shape.w0] * shape.d
    while True:
        most = sum(a * b for a, b in pairwise(counts))
        fewest = sum(counts[1:])
        if most >= shape.e and (fewest == shape.e or rng.uniform() >= shape.p):
            break
        roomy = [layer for layer in range(shape.d) if counts[layer] < shape.w1]
        if not roomy:
            break
        counts[rng.choice(roomy)] += 1
    edges = {(i, rng.below(counts[i]), k) for i in range(shape.d - 1) for k in range(counts[i + 1])}
    others = [
        (i, j, k)
        for i in range(shape.d - 1)
        for j in range(counts[i])
        for k in range(counts[i + 1])
        if (i, j, k) not in edges
    ]
    edges.update(rng.sample(others, max(0, min(shape.e - len(edges), len(others)))))
    return [
        [[k for k in range(counts[i + 1]) if (i, j, k) in edges] for j in range(counts[i])] for i in range(shape.d - 1)
    ]
