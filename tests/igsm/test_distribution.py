"""The law of problems against that of the published generator, measured (Part 2.2's reference table, section 5.2).

Each row: means over the problems that the published generator made in 12 to 25 seconds, so that their number, and with
it the standard error, is known to within a factor of two. Ours has to agree within three standard errors of both.
"""

import resource
import tracemalloc

import numpy as np
import pytest

from peft_study.igsm.families import FAMILIES
from peft_study.igsm.fast.layout import INSTANCES, LAYERS, MISTAKES, ORDERED
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.stream import Writer

# family, op (0: official law), problems a second; means: instance parameters, steps, abstract steps (None: not known)
PUBLISHED = [
    ("med", 0, 18.8, 8.9, 4.4, None),
    ("med", 15, 137, 10.7, 11.3, 3.4),
    ("med", 20, 59, 11.4, 14.1, None),
    ("med", 23, 46, 11.6, 15.4, 5.2),
    ("hard", 0, 8.9, 10.7, 6.1, None),
    ("hard", 21, 21, 13.6, 14.5, None),
    ("hard", 28, 30, 14.3, 17.8, None),
    ("hard", 32, 23, 14.8, 19.7, 6.2),
]
OURS = 3_000


def _drawn(family: str, ops: tuple[int, ...], count: int) -> np.ndarray:
    """Return instance parameters, steps, abstract steps, layers and op of problems of every bin: [count, 5]."""
    writer = Writer(StreamSettings(family=FAMILIES[family], ops=ops, seed=5))
    writer.rules = writer.rules._replace(low=0, high=23)
    rows = np.empty((count, 5))
    for index in range(count):
        _, op, _ = writer.write(index)
        meta, draft = writer.draft.meta, writer.draft
        steps = draft.order[: meta[ORDERED]]
        rows[index] = meta[INSTANCES], meta[ORDERED], draft.where[steps, 0].sum(), meta[LAYERS], op
    return rows


@pytest.mark.parametrize(("family", "op", "rate", "ip", "steps", "abstract"), PUBLISHED)
def test_means_are_those_of_the_published_generator(
    family: str, op: int, rate: float, ip: float, steps: float, abstract: float | None
) -> None:
    rows = _drawn(family, (op,) if op else (), OURS)
    theirs = 18 * rate  # the middle of 12 to 25 seconds
    for column, expected in enumerate((ip, steps, abstract)):
        if expected is not None:
            error = rows[:, column].std() * (1 / theirs + 1 / OURS) ** 0.5
            # 0.05: the table is rounded to one digit.
            assert abs(rows[:, column].mean() - expected) < 3 * error + 0.05, (column, rows[:, column].mean())


@pytest.mark.parametrize(("family", "most"), [("med", 15), ("hard", 21)])
def test_op_follows_the_official_law(family: str, most: int) -> None:
    """P(op = k) = (2 (K - k) + 1) / K^2."""
    drawn = _drawn(family, (), 6_000)[:, 4]
    expected = np.array([(2 * (most - k) + 1) / most**2 * 6_000 for k in range(1, most + 1)])
    counts = np.array([(drawn == k).sum() for k in range(1, most + 1)])
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < {15: 36.1, 21: 45.3}[most]  # 99.9 % quantile with K - 1 degrees of freedom


def test_layers_are_split_as_published() -> None:
    """The table's mix: op pinned to the smaller of two uniform draws."""
    rows = np.concatenate([_drawn("med", (op,), 2 * (15 - op) * 14 + 14) for op in range(1, 16)])
    shares = [(rows[:, 3] == d).mean() for d in (2, 3, 4)]
    error = (0.36 * 0.64 * (1 / (18 * 210) + 1 / len(rows))) ** 0.5
    assert shares == pytest.approx([0.35, 0.36, 0.29], abs=3 * error + 0.005)
    assert rows[:, 2].mean() == pytest.approx(1.2, abs=0.15)


@pytest.mark.parametrize(
    ("kind", "rate", "expected"),
    [
        *(("retry", rate, mean) for rate, mean in ((0.05, 0.27), (0.1, 0.63), (0.2, 1.26), (0.5, 4.55))),
        *(("weak", rate, mean) for rate, mean in ((0.05, 0.18), (0.1, 0.60), (0.2, 1.04), (0.5, 3.74))),
    ],
)
def test_mistakes_are_as_many_as_the_published_generator_makes(kind: str, rate: float, expected: float) -> None:
    """Counted over 250 problems of the natural mix there."""
    writer = Writer(StreamSettings.model_validate({"family": FAMILIES["med"], "kind": kind, "retry_rate": rate}))
    counts = []
    for index in range(2_000):
        writer.write(index)
        counts.append(int(writer.draft.meta[MISTAKES]))
    error = float(np.std(counts)) * (1 / 250 + 1 / len(counts)) ** 0.5
    assert np.mean(counts) == pytest.approx(expected, abs=3 * error + 0.005)


def test_retries_of_all_rates_together_are_as_many() -> None:
    """One rate alone says little with the 250 problems counted there; among parameters in use alone all are too few."""
    apart = []
    for rate, expected in ((0.05, 0.27), (0.1, 0.63), (0.2, 1.26), (0.5, 4.55)):
        writer = Writer(StreamSettings(family=FAMILIES["med"], retry_rate=rate))
        counts = []
        for index in range(4_000):
            writer.write(index)
            counts.append(int(writer.draft.meta[MISTAKES]))
        apart.append((np.mean(counts) - expected) / (np.std(counts) * (1 / 250 + 1 / len(counts)) ** 0.5))
    assert abs(sum(apart)) < 3 * len(apart) ** 0.5


def test_memory_stays_flat() -> None:
    writer = Writer(StreamSettings(family=FAMILIES["nano"], retry_rate=0.3))
    tracemalloc.start()
    for index in range(2_000):
        writer.write(index)
    before = tracemalloc.get_traced_memory()[0], _resident_mib()
    for index in range(2_000, 40_000):
        writer.write(index)
    after = tracemalloc.get_traced_memory()[0], _resident_mib()
    tracemalloc.stop()
    assert after[0] - before[0] < 100_000
    assert after[1] - before[1] < 20


def _resident_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
