"""What trials of our sweeps leave behind when they are run for the clock alone."""

from typing import Any

from peft_study.records import Status
from peft_study.study.config import TrialConfig


def finished(
    config: TrialConfig, *, trial: str, arm: str, sweep: str, tokens: int, measures: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the result of a trial that ran to its end."""
    return {
        "trial": trial,
        "arm": arm,
        "sweep": sweep,
        "status": Status.FINISHED.value,
        "reason": "",
        "config": config.model_dump(mode="json"),
        "provenance": {},
        "tokens": tokens,
        "measures": measures,
    }
