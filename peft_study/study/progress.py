"""What a person sees while trials run: one bar over all tokens, or plain lines where there is no terminal."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from peft_study.telling import Progress

LINE_SECONDS = 5.0
"""Seconds between plain lines, at least."""


def duration(seconds: float) -> str:
    """Return `seconds` for a person.

    >>> duration(75), duration(4_000)
    ('1:15', '1:06:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _TimeLeft(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(task.fields["left"], style="progress.remaining")


@dataclass(slots=True)
class _Running:
    started: float
    begun_at: int | None = None
    """Tokens it had read when it was started here: not 0 where it goes on from a checkpoint."""
    first_read: float = math.nan
    last_read: float | None = None
    """When it began to read, and when it had read all."""
    text: str = "starts"
    phase: str = ""
    phase_started: float = 0.0
    first_share: float = 0.0
    """How much of the phase was done when it was first told of."""
    share: float = 0.0

    def read_for(self, now: float) -> float:
        """Return the seconds it has read here."""
        return 0.0 if self.begun_at is None else (self.last_read or now) - self.first_read


class SweepProgress:
    """The progress of a sweep of `num_trials` trials, of which some run side by side."""

    def __init__(self, console: Console, num_trials: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.num_trials, self.clock = console, num_trials, clock
        self.expected: dict[str, int] = {}
        """Trial id to its tokens."""
        self.running: dict[str, _Running] = {}
        self.read: dict[str, int] = {}
        """Trial id to the tokens that it has read."""
        self.took: dict[str, float] = {}
        """Trial id to the seconds it has run here, for those that are paused."""
        self.trained: dict[str, float] = {}
        """Trial id to those of them in which it read."""
        self.beside: list[float] = []
        """Of each trial that has ended here, the seconds in which it did not read: loading, compiling, evaluation."""
        self.ended_trials, self.read_here, self.reading_seconds = 0, 0, 0.0
        self.last_line = -math.inf
        self.bar: Bar | None = None
        if console.is_terminal and not console.is_dumb_terminal:
            columns = [BarColumn(bar_width=30), TextColumn("{task.percentage:3.0f}%"), _TimeLeft()]
            self.bar = Bar(*columns, TextColumn("{task.description}"), console=console, transient=True)
            self.task = self.bar.add_task("", total=None, left="")

    def __enter__(self) -> "SweepProgress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def expect(self, trial: str, tokens: int, *, done: bool = False) -> None:
        """Count on `trial` to read `tokens` tokens in all; with `done` it did so earlier."""
        self.expected[trial] = tokens
        if done:
            self.read[trial] = tokens
            self.ended_trials += 1

    def expect_again(self, trial: str) -> None:
        """Count on `trial`, which had ended, to read all of its tokens anew."""
        self.ended_trials -= 1
        del self.read[trial]

    def start_trial(self, trial: str) -> None:
        """Show that `trial` runs now."""
        if self.bar is not None:
            self.bar.start()
        self.running[trial] = _Running(self.clock())
        self._show()

    def update(self, trial: str, report: Progress) -> None:
        """Show where a trial is."""
        running = self.running[trial]
        if running.begun_at is None and report.phase == "train":
            running.begun_at, running.first_read = report.tokens, self.clock()
        if running.begun_at is not None and running.last_read is None and report.tokens >= report.total:
            running.last_read = self.clock()
        self.read[trial] = report.tokens
        if report.phase != running.phase:
            running.phase, running.phase_started, running.first_share = report.phase, self.clock(), report.share or 0.0
        running.share = report.share or 0.0
        share = "" if report.share is None else f" {report.share:.0%}"
        loss = "" if math.isnan(report.loss) else f", loss {report.loss:.3f}"
        running.text = f"{report.phase}{share}{loss}"
        self._show()

    def pause_trial(self, trial: str) -> None:
        """Show `trial` no more until it is started again."""
        running = self.running.pop(trial)
        if running.begun_at is not None:
            self.read_here += self.read[trial] - running.begun_at
        seconds = running.read_for(self.clock())
        self.reading_seconds += seconds
        self.trained[trial] = self.trained.get(trial, 0.0) + seconds
        self.took[trial] = self.took.get(trial, 0.0) + self.clock() - running.started

    def end_trial(self, trial: str, text: str, *, tokens: int | None = None, bad: bool = False) -> None:
        """Show that a trial that runs, or is paused, has ended, after `tokens` tokens where it did not read all."""
        if trial in self.running:
            self.pause_trial(trial)
        self.read[trial] = self.expected[trial] = self.expected[trial] if tokens is None else tokens
        self.ended_trials += 1
        took = self.took.pop(trial, None)
        if took is not None:  # It may have run before only, and be out of its bracket now.
            self.beside.append(took - self.trained.pop(trial))
        shown = escape(f"[{self.ended_trials}/{self.num_trials}] {text} ({duration(took or 0.0)})")
        # highlight=False: Rich would colour every number of an id.
        self.console.print(f"[red]{shown}[/red]" if bad else shown, highlight=False, soft_wrap=True)
        self.last_line = self.clock()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self.console.print(escape(text), highlight=False, soft_wrap=True)

    def seconds_left(self) -> float | None:
        """Return the seconds left, None before there is a speed to tell from.

        A trial that is to come reads at the speed of those before it, and takes as long beside it: as those that have
        ended here on average, or else as the longest that runs has so far.
        Before the first tokens are read and after the last, those left of what the oldest running trial does.
        """
        read_here, reading = self.read_here, self.reading_seconds
        spent = {trial: self.took.get(trial, 0.0) - self.trained.get(trial, 0.0) for trial in self.took}
        for trial, running in self.running.items():
            seconds = running.read_for(self.clock())
            reading += seconds
            spent[trial] = spent.get(trial, 0.0) + self.clock() - running.started - seconds
            if running.begun_at is not None:
                read_here += self.read[trial] - running.begun_at
        left = sum(self.expected.values()) - sum(self.read.values())
        if read_here > 0 and left > 0:
            beside = fmean(self.beside) if self.beside else max(spent.values())
            to_come = self.num_trials - self.ended_trials - len(spent)
            beside_left = to_come * beside + sum(max(0.0, beside - seconds) for seconds in spent.values())
            return (left * reading / read_here + beside_left) / max(1, len(self.running))
        running = next(iter(self.running.values()), None)
        if running is None or running.share <= running.first_share:
            return None
        done = running.share - running.first_share
        return (1 - running.share) * (self.clock() - running.phase_started) / done

    def _show(self) -> None:
        if self.bar is None and self.clock() - self.last_line < LINE_SECONDS:
            return
        seconds = self.seconds_left()
        left = "" if seconds is None else f"{duration(seconds)} left"
        # The oldest of those that run speaks for all: a text that jumps between them cannot be read.
        trial, running = next(iter(self.running.items()))
        beside = f" (+{len(self.running) - 1} beside it)" if len(self.running) > 1 else ""
        text = f"[{self.ended_trials + 1}/{self.num_trials}] {trial} {running.text}{beside}"
        if self.bar is not None:
            total, done = float(sum(self.expected.values())), float(sum(self.read.values()))
            if not total:  # Nothing is trained: all there is to see is the phase.
                total, done = 1.0, running.share
            self.bar.update(self.task, total=total, completed=done, description=escape(text), left=left)
            return
        self.last_line = self.clock()
        self.console.print(escape(text + (f", {left}" if left else "")), highlight=False, soft_wrap=True)
