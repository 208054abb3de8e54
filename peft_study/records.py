"""What a result is made of: statuses, grades, metric names with unit and direction, the columns of the tidy table."""

from enum import StrEnum
from typing import NamedTuple


class Status(StrEnum):
    """How a trial ended. Failed is a status with a reason, never a number."""

    FINISHED = "finished"
    """Trained and evaluated."""
    PRUNED = "pruned"
    """Stopped early by the pruner, on purpose."""
    FAILED = "failed"
    """Raised; the reason is kept."""
    KILLED = "killed"
    """Stopped from outside; goes on with the next run of the sweep."""
    MISSING = "missing"
    """Planned, not yet run."""


class Stopped(BaseException):
    """Raised through a trial to stop it on purpose; no Exception, so that no trial takes it for its own failure."""


class Grade(StrEnum):
    """What became of an answer. Only `right` counts as solved; the others are reported apart from each other."""

    RIGHT = "right"
    WRONG = "wrong"
    UNPARSABLE = "unparsable"
    """No answer could be read from what was written."""
    TRUNCATED = "truncated"
    """The model was stopped before it had ended."""
    TIMED_OUT = "timed_out"
    """A program ran past its limit of time."""
    CRASHED = "crashed"
    """A program ended with an error, or was ended for breaking a limit."""


class Metric(NamedTuple):
    """What a metric means."""

    unit: str
    direction: str
    """'higher' or 'lower' is better; 'none' where neither is."""
    meaning: str


METRICS: dict[str, Metric] = {
    "accuracy": Metric("share", "higher", "solutions with every step and the answer right (strict verifier)"),
    "accuracy_published": Metric("share", "higher", "solutions right by the published verifier's looser rule"),
    "accuracy_gain": Metric("share", "higher", "accuracy less that of the base before training, on the same problems"),
    "unparsable": Metric(
        "share", "lower", "solutions outside the grammar, or in which no answer or program can be read"
    ),
    "truncated": Metric("share", "lower", "solutions cut by the length limit"),
    "timed_out": Metric("share", "lower", "solutions whose program, or the comparison of whose answer, ran too long"),
    "crashed": Metric("share", "lower", "solutions whose program ended with an error or broke a limit"),
    "retractions": Metric("share", "none", "solutions of texts in which something is taken back"),
    "retries_right": Metric("count", "none", "retractions per right solution"),
    "retries_wrong": Metric("count", "none", "retractions per wrong solution"),
    "won_by_retraction": Metric(
        "share",
        "higher",
        "problems the base (of iGSM: the error-free one) gets wrong, this model right, by a solution that retracts",
    ),
    "unnecessary_steps": Metric("count", "lower", "steps of right solutions that the question does not need"),
    "detect_auroc": Metric("area", "higher", "ranking of wrong before right decision points by the detector"),
    "detect_auroc_after_retraction": Metric("area", "higher", "the same, where a retraction stands earlier"),
    "detect_auroc_without_retraction": Metric("area", "higher", "the same, where none does"),
    "detect_balanced_accuracy": Metric("share", "higher", "mean of both recalls, threshold from validation"),
    "detect_ece": Metric("share", "lower", "expected calibration error of P(wrong), 10 bins"),
    "detect_base_rate": Metric("share", "none", "wrong decision points among all"),
    "own_mistakes_covered": Metric(
        "share", "none", "the base's wrong solutions whose first mistake is known, of iGSM: at `as`"
    ),
    "free_auroc": Metric("area", "higher", "the same ranking by the model's own probability of [BACK]"),
    "free_auroc_after_retraction": Metric("area", "higher", "the same, where a retraction stands earlier"),
    "free_auroc_without_retraction": Metric("area", "higher", "the same, where none does"),
    "loss": Metric("nats", "lower", "mean loss over the skill's target tokens, validation stream"),
    "gap_closed": Metric("ratio", "higher", "(value - lower) / (upper - lower); see README"),
}


class Measure(NamedTuple):
    """One number of a result with its interval (95 %) and the number of items behind it."""

    split: str
    set: str
    """id, ood, reask, injected, own or pairs; 'stream' for losses."""
    op: int | None
    """Operations of the problems; None for a mixture."""
    metric: str
    value: float
    low: float
    high: float
    n: int


COLUMNS: tuple[str, ...] = (
    *("sweep", "trial", "status", "skill", "method", "rank", "targets", "embeddings", "lora_alpha", "lr", "mask"),
    *("kind", "retry_rate", "order", "base", "base_seed", "family", "seed", "decoding", "quantization"),
    *("tokens", "tokens_with_loss", "trainable_params"),
    *("split", "set", "op", "metric", "value", "low", "high", "n"),
    *("seconds", "peak_memory_mib", "converged", "reason", "config"),
)
"""Columns of `results.csv`, in order. `config` holds the rest of the resolved config as JSON."""
