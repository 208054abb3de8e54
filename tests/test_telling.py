"""What is told of a trial while it goes on."""

import math

from peft_study.telling import Point, Progress, Teller


def test_a_phase_keeps_where_the_training_is() -> None:
    told: list[Progress] = []
    metrics: list[tuple[int, dict[str, float]]] = []
    teller = Teller(told.append, lambda step, found: metrics.append((step, found)))
    teller.phase("load")
    teller.point(Point(25, 100, {"train/loss": 2.0}))
    teller.point(Point(50, 100, {"validation/loss": 1.5}))
    teller.point(Point(100, 100, {}))
    teller.phase("solve op 6", 0.5)
    assert math.isnan(told[0].loss)
    assert told[0]._replace(loss=0.0) == Progress(0, 0, 0.0, "load", None)
    assert math.isnan(told[1].loss)
    assert told[2:] == [
        Progress(50, 100, 1.5, "train", 0.5),
        Progress(100, 100, 1.5, "train", 1.0),
        Progress(100, 100, 1.5, "solve op 6", 0.5),
    ]
    assert metrics == [(25, {"train/loss": 2.0}), (50, {"validation/loss": 1.5})]
