"""Who runs a trial of a sweep: a worker alone, or threads of one worker whose adapters train in one bank."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from peft_study.errors import ConfigError
from peft_study.study.config import TrialConfig
from peft_study.study.plan import Plan, searched_trial
from peft_study.telling import Progress


class TrialRunner(Protocol):
    """Runs one trial in a folder and returns its result, which it has also written there."""

    def __call__(
        self,
        config: TrialConfig,
        folder: Path,
        *,
        trial: str,
        arm: str,
        sweep: str,
        on_progress: Callable[[Progress], None],
        on_metrics: Callable[[int, dict[str, float]], None],
    ) -> dict[str, Any]:
        """Run the trial; go on from its last checkpoint where there is one.

        The metrics are in `checkpoint/metrics.jsonl` below the folder before they are told.
        """
        ...


def train_trial(*args: Any, **options: Any) -> dict[str, Any]:
    """Run one real trial, on one thread; imports what trains only now, since that takes seconds."""
    from peft_study.study.trial import run_trial
    from peft_study.training.machine import prepare_process

    prepare_process(threads=1)
    return run_trial(*args, **options)


def check_bank(plan: Plan) -> None:
    """Raise ConfigError for a trial that may not run in a thread beside others, or that a search may draw."""
    trials = list(plan.trials)
    if search := plan.sweep.search:
        for end in ("low", "high"):
            values = {key: getattr(drawn, end) for key, drawn in search.space.items()}
            trials += [searched_trial(plan, cell, values) for cell in plan.cells]
    for planned in trials:
        config = planned.config
        why = "is on real texts" if config.pretrained else "has dropout" if config.method.dropout else ""
        if why:
            raise ConfigError(
                f"trial {planned.trial} {why}, which draws from one generator of the process, so it cannot run beside "
                "others in a bank; leave --bank out"
            )


_OPENS = threading.Lock()


@dataclass
class BankedTrials:
    """Runs real trials, several threads at once, whose adapters train in one bank of the process."""

    size: int
    bank: Any = None
    """Opened where the first trial runs."""

    def __call__(self, *args: Any, **options: Any) -> dict[str, Any]:
        """Run one trial as `train_trial` does."""
        from peft_study.study.trial import run_trial
        from peft_study.training.machine import prepare_process
        from peft_study.training.shared import SharedBank

        with _OPENS:
            prepare_process(threads=1)
            self.bank = self.bank or SharedBank(self.size)
        return run_trial(*args, trainer=self.bank.train, **options)
