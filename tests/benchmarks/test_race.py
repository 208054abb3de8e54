"""Races of two sides: who is measured, what is compared, and when there is no row."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import race as module
from benchmarks.race import Gate, Row, Side, alone, race, ratio_interval, show, write


def sleeper(gate: Gate, *, seconds: float, check: float, first: float = 0.0) -> None:
    """Work by sleeping, longer before the first unit."""
    time.sleep(first)
    while True:
        time.sleep(seconds)
        gate(check)


def breaks(gate: Gate) -> None:
    """End at once."""
    raise ValueError("no such setting")


def side(name: str, seconds: float, check: float = 1.0, first: float = 0.0) -> Side:
    return Side(name, sleeper, {"seconds": seconds, "check": check, "first": first})


@pytest.fixture(scope="module")
def row() -> Row:
    return race("sleep", side("quick", 0.01, first=0.3), side("slow", 0.03, 1.005), unit="a nap", target=2.0, blocks=4)


def test_ratio_is_the_peers_time_over_ours(row: Row) -> None:
    assert row.ratio > 1.2  # 3, but for what else the machine does
    assert row.low <= row.ratio <= row.high
    assert 0.01 < row.ours < row.peer
    assert row.checks == (1.0, 1.005)
    assert row.warm_up[0] > 0.3 > row.warm_up[1]


def test_sides_that_end_elsewhere_give_no_row() -> None:
    with pytest.raises(RuntimeError, match=r"sleep: a ended with 1, b with 1\.02"):
        race("sleep", side("a", 0.001), side("b", 0.001, 1.02), unit="a nap", blocks=1)
    assert race("sleep", side("a", 0.001), side("b", 0.001, 1.02), unit="a nap", blocks=1, parity=None)


def test_a_side_that_breaks_is_an_error() -> None:
    with pytest.raises(EOFError):
        race("broken", side("a", 0.001), Side("b", breaks), unit="a nap")


def test_alone_times_one_side() -> None:
    assert 0.02 < alone(side("a", 0.02, first=3.0)) < 1.5


def test_interval_holds_the_median_and_narrows() -> None:
    generator = np.random.default_rng(1)
    peer = generator.normal(3, 0.3, 200)
    wide, narrow = ratio_interval([1.0] * 5, list(peer[:5])), ratio_interval([1.0] * 200, list(peer))
    assert narrow[1] < 3 < narrow[2]
    assert narrow[2] - narrow[1] < wide[2] - wide[1]
    assert narrow == ratio_interval([1.0] * 200, list(peer))


def test_rows_are_written_as_they_are_shown(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    path = write([row], "x")
    assert path.name in ("cpu-x.json", "cpu-amx-x.json", "cuda-x.json")
    (read,) = json.loads(path.read_text())
    assert {"name", "ours", "peer", "ratio", "low", "high", "target", "unit", "versions", "commit"} <= read.keys()
    assert read["ratio"] == row.ratio
    assert f"{row.ratio:.2f} [{row.low:.2f}, {row.high:.2f}] (goal 2)" in show(row)
