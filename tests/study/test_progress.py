"""What a person sees while trials run."""

import io
import math

import pytest
from rich.console import Console

from peft_study.study.progress import SweepProgress
from peft_study.telling import Progress


def at(tokens: int, loss: float = 1.25) -> Progress:
    return Progress(tokens, 100, loss, share=tokens / 100)


def test_progress_is_plain_and_rare_without_a_terminal() -> None:
    now, out = [0.0], io.StringIO()
    with SweepProgress(Console(file=out, width=200), 3, clock=lambda: now[0]) as progress:
        progress.expect("zero", 100, done=True)
        progress.expect("one", 100)
        progress.expect("two", 100)
        progress.start_trial("one")
        for tokens in range(101):
            now[0] = float(tokens)
            progress.update("one", at(tokens))
        progress.end_trial("one", "one finished")
    lines = out.getvalue().splitlines()
    assert lines[0] == "[2/3] one starts"
    assert len(lines) == 22
    assert lines[10] == "[2/3] one train 50%, loss 1.250, 2:30 left"
    assert lines[-1] == "[2/3] one finished (1:40)"
    assert "\x1b" not in out.getvalue()


def test_what_comes_before_training_is_shown_and_says_nothing_of_its_speed() -> None:
    now, out = [0.0], io.StringIO()
    with SweepProgress(Console(file=out, width=200), 1, clock=lambda: now[0]) as progress:
        progress.expect("one", 100)
        progress.start_trial("one")
        for now[0], phase in ((10.0, "load"), (500.0, "solve as the base")):
            progress.update("one", Progress(0, 0, math.nan, phase))
        now[0] = 1000.0
        progress.update("one", at(40))  # from a checkpoint at 40
        now[0] = 1010.0
        progress.update("one", at(50))
        assert progress.seconds_left() == pytest.approx(50.0)
    lines = out.getvalue().splitlines()
    assert lines[:3] == ["[1/1] one starts", "[1/1] one load", "[1/1] one solve as the base"]


def test_time_left_counts_what_runs_side_by_side_and_what_was_read_before() -> None:
    now, out = [0.0], io.StringIO()
    with SweepProgress(Console(file=out, width=200), 2, clock=lambda: now[0]) as progress:
        for trial in ("one", "two"):
            progress.expect(trial, 100)
            progress.start_trial(trial)
        assert progress.seconds_left() is None
        progress.update("one", at(60))  # from a checkpoint at 60
        progress.update("two", at(0))
        now[0] = 10.0
        progress.update("one", at(70))
        progress.update("two", at(10, math.nan))
        assert progress.seconds_left() == pytest.approx(60.0)  # 20 tokens in 10 seconds, 120 are left
    assert out.getvalue().splitlines()[-1] == "[1/2] one train 70%, loss 1.250 (+1 beside it), 2:10 left"


def test_progress_on_a_terminal_is_one_bar() -> None:
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=True, color_system=None)
    with SweepProgress(console, 1) as progress:
        progress.expect("one [r4]", 10)
        progress.start_trial("one [r4]")
        progress.end_trial("one [r4]", "one [r4] failed", bad=True)
    assert "one [r4] starts" in out.getvalue()
    assert "[1/1] one [r4] failed" in out.getvalue()


def test_time_left_where_no_tokens_are_read_is_that_of_the_phase() -> None:
    now, out = [0.0], io.StringIO()
    with SweepProgress(Console(file=out, width=200), 1, clock=lambda: now[0]) as progress:
        progress.expect("one", 100)
        progress.start_trial("one")
        for now[0], share in ((10.0, 0.2), (40.0, 0.5)):  # 30 % in 30 seconds, from where it was
            progress.update("one", Progress(0, 0, math.nan, "solve as the base", share))
        now[0] = 100.0
        progress.update("one", at(0))
        assert progress.seconds_left() is None
        now[0] = 200.0
        progress.update("one", at(50))
        assert progress.seconds_left() == pytest.approx(100.0)
        now[0] = 300.0
        progress.update("one", at(100))
        for now[0], share in ((310.0, 0.0), (330.0, 0.25)):
            progress.update("one", Progress(100, 100, 1.25, "solve op 6", share))
        now[0] = 340.0
        progress.update("one", Progress(100, 100, 1.25, "judge own"))
        assert progress.seconds_left() is None
    assert [line for line in out.getvalue().splitlines() if "train" not in line] == [
        "[1/1] one starts",
        "[1/1] one solve as the base 20%",
        "[1/1] one solve as the base 50%, 0:50 left",
        "[1/1] one solve op 6 0%, loss 1.250",
        "[1/1] one solve op 6 25%, loss 1.250, 1:00 left",
        "[1/1] one judge own, loss 1.250",
    ]


def test_time_left_counts_what_trials_do_beside_reading() -> None:
    now = [0.0]
    with SweepProgress(Console(file=io.StringIO(), width=200), 4, clock=lambda: now[0]) as progress:
        for trial in ("one", "two", "three", "four"):
            progress.expect(trial, 100)
        progress.start_trial("one")
        progress.update("one", Progress(0, 0, math.nan, "load"))
        now[0] = 20.0
        progress.update("one", at(0))
        now[0] = 120.0  # A second for each token.
        progress.update("one", at(100))
        # Three to come of 100 seconds, and of the 20 that this one has taken so far to load.
        assert progress.seconds_left() == pytest.approx(360.0)
        now[0] = 180.0
        progress.update("one", Progress(100, 100, 1.25, "solve op 6", 0.5))
        assert progress.seconds_left() == pytest.approx(540.0)  # It has taken 80 by now.
        now[0] = 220.0
        progress.end_trial("one", "one finished")
        progress.start_trial("two")
        progress.update("two", at(0))
        now[0] = 270.0
        progress.update("two", at(50))
        assert progress.seconds_left() == pytest.approx(250.0 + 3 * 120.0)
        progress.start_trial("three")
        assert progress.seconds_left() == pytest.approx((250.0 + 3 * 120.0) / 2)
        progress.end_trial("two", "two failed", tokens=50, bad=True)
        # Of the two that have ended, one after half of its tokens, the mean time beside reading is 60 now.
        assert progress.seconds_left() == pytest.approx(200.0 + 2 * 60.0)


def test_trials_that_did_not_run_here_say_nothing_of_the_time_beside_reading() -> None:
    now = [0.0]
    with SweepProgress(Console(file=io.StringIO(), width=200), 3, clock=lambda: now[0]) as progress:
        for trial in ("one", "two", "out of its bracket"):
            progress.expect(trial, 100)
        progress.end_trial("out of its bracket", "out of its bracket pruned", tokens=25)
        progress.start_trial("one")
        now[0] = 30.0
        progress.update("one", at(0))
        now[0] = 40.0
        progress.update("one", at(10))
        assert progress.seconds_left() == pytest.approx(90.0 + 100.0 + 30.0)
