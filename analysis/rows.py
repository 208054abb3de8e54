"""From the records of a sweep to the rows of its tidy table."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from analysis.gap import Gap, gap_closed
from analysis.stats import Arrays, Key, Sample, TrialSample, pool, samples_of
from peft_study.evaluation.config import NaturalEvaluationConfig
from peft_study.igsm.families import family_named
from peft_study.records import METRICS, Status
from peft_study.rng import derive_seed
from peft_study.stats import percentile_interval
from peft_study.study.config import TrialConfig, flatten, overrides_from
from peft_study.study.reuse import KeptTrial

Row = dict[str, Any]

COLUMN_KEYS = {
    "skill": "skill.name",
    "method": "method.name",
    "rank": "method.rank",
    "targets": "method.targets",
    "embeddings": "method.embeddings",
    "lora_alpha": "method.lora_alpha",
    "lr": "training.lr",
    "mask": "skill.mask",
    "kind": "data.kind",
    "retry_rate": "data.retry_rate",
    "order": "data.order",
    "base": "base.name",
    "base_seed": "base.seed",
    "family": "data.family",
    "seed": "seed",
}
"""Column of the table, and the config key it shows."""
_OF_ADAPTERS = ("rank", "targets", "embeddings", "lora_alpha")
BOOTSTRAP_SEED = derive_seed(0, "analysis")


@dataclass(frozen=True)
class TrialRecord:
    """What is known of one planned trial."""

    trial: str
    arm: str
    status: Status
    reason: str
    config: dict[str, Any]
    """Resolved config as a tree."""
    result: dict[str, Any]
    """`result.json`; empty where there is none."""
    outcomes: Arrays
    """`outcomes.npz`; empty unless finished, and for a trial that was taken from a published table."""
    alarms: tuple[str, ...] = ()
    """What the plan says a reader must know."""
    kept: dict[Key, Sample] | None = None
    """Samples of a trial that was taken from a published table."""

    @cached_property
    def samples(self) -> dict[Key, Sample]:
        """Return what can be pooled with other trials."""
        if self.kept is not None:
            return self.kept
        # Of real texts there may be fewer than were asked for.
        n = int(self.config["evaluation"]["n"]) if "pretrained" not in self.config else None
        return samples_of(self.outcomes, n=n, seed=BOOTSTRAP_SEED)


def kept_samples(kept: KeptTrial) -> dict[Key, Sample]:
    """Return what can be pooled of a trial that was taken from a published table."""
    return {
        Key(*sample[:3]): Sample(sample.value, sample.draws.astype(np.float64), sample.problems)
        for sample in kept.samples
    }


def kept_record(trial: str, kept: KeptTrial) -> TrialRecord:
    """Return the record of a finished trial as it was published."""
    result = kept.result
    return TrialRecord(
        trial, result["arm"], Status.FINISHED, "", result["config"], result, outcomes={}, kept=kept_samples(kept)
    )


class SweepRecord(NamedTuple):
    """What is known of a sweep."""

    name: str
    question: str
    first_look: bool
    gap: dict[str, dict[str, str]]
    """Skill to the arms that are its `lower` and `upper` reference."""
    figures: tuple[str, ...]
    """The figures it feeds."""
    trials: tuple[TrialRecord, ...]
    overrides: tuple[str, ...] = ()
    """What was changed on the command line of its last run."""


def config_columns(config: dict[str, Any]) -> Row:
    """Return the columns that show `config`; `config` among them is the rest, as JSON.

    Adapter columns stay empty for methods without an adapter, and a scale of 0 shows as what it stands for.
    """
    flat = flatten(config)
    row: Row = {column: flat.get(key) for column, key in COLUMN_KEYS.items()}
    method = row["method"]
    if method == "lora":
        row["lora_alpha"] = row["lora_alpha"] or 2 * row["rank"]
    else:
        row.update(dict.fromkeys(_OF_ADAPTERS))
        row["rank"] = flat.get("method.rank") if method == "probe" else None
    if "pretrained" in config:
        row |= _text_columns(config)
    shown = {key: row[column] for column, key in COLUMN_KEYS.items()}
    rest = {key: value for key, value in flat.items() if key not in shown or shown[key] != value}
    held = flat.get("pretrained.quantization", "none")
    return row | {"decoding": "greedy", "quantization": held, "config": json.dumps(rest, sort_keys=True)}


def _text_columns(config: dict[str, Any]) -> Row:
    """Return the columns that say something else for a trial on real texts."""
    corpus = config["corpus"]
    row: Row = {"base": config["pretrained"]["name"], "family": corpus["name"], "order": ""}
    if corpus["name"] != "igsm":
        has_mistakes = corpus["mistakes"] != "none"
        row |= {"kind": corpus["mistakes"], "retry_rate": corpus["retry_rate"] if has_mistakes else 0.0}
    return row


def _measured(config: dict[str, Any]) -> dict[str, Any]:
    """Return split and size of what a trial is measured on."""
    if "pretrained" not in config:
        return config["evaluation"]
    return NaturalEvaluationConfig.model_validate(config.get("testing", {})).model_dump()


def overrides_of(row: Row) -> list[str]:
    """Return the dotted overrides that make the trial of a table row: what differs from the defaults."""
    flat = {key: row[column] for column, key in COLUMN_KEYS.items()} | json.loads(row["config"])
    # What a table leaves empty does not apply to the trial.
    shown = {key: value for key, value in sorted(flat.items()) if value is not None and value != ""}
    return overrides_from(shown, flatten(TrialConfig().model_dump(mode="json")))


def rows_of(sweep: SweepRecord) -> list[Row]:
    """Return the rows of a sweep: every trial in the order of the plan, then every arm."""
    rows = [row for record in sweep.trials for row in _trial_rows(sweep.name, record)]
    samples = arm_samples(sweep.trials)
    for arm in dict.fromkeys(record.arm for record in sweep.trials):
        rows += _arm_rows(sweep, arm, samples)
    return rows


def _trial_rows(sweep: str, record: TrialRecord) -> list[Row]:
    result = record.result
    common = config_columns(record.config) | {
        "sweep": sweep,
        "trial": record.trial,
        "status": record.status.value,
        "reason": record.reason,
        **{key: result.get(key) for key in ("tokens", "tokens_with_loss", "trainable_params")},
        **{key: result.get(key) for key in ("seconds", "peak_memory_mib", "converged")},
    }
    measures = result.get("measures", []) if record.status is Status.FINISHED else []
    return [common | measure for measure in measures] or [common]


def arm_samples(trials: Sequence[TrialRecord]) -> dict[str, dict[Key, list[TrialSample]]]:
    """Return, for each arm and key, the samples of its finished trials."""
    samples: dict[str, dict[Key, list[TrialSample]]] = {}
    for record in trials:
        of_arm = samples.setdefault(record.arm, {})
        for key, sample in record.samples.items():
            base_seed = int(record.config["base"]["seed"])
            of_arm.setdefault(key, []).append(TrialSample(base_seed, sample))
    return samples


def _arm_rows(sweep: SweepRecord, arm: str, samples: dict[str, dict[Key, list[TrialSample]]]) -> list[Row]:
    records = [record for record in sweep.trials if record.arm == arm]
    common = _arm_common(sweep.name, arm, records)
    order = list(METRICS)
    rows: list[Row] = []
    for key in sorted(samples[arm], key=lambda key: (order.index(key.metric), key.set, key.op is None, key.op or 0)):
        trials = samples[arm][key]
        sample = pool(trials, arm=arm, bases=_bases(trials), seed=BOOTSTRAP_SEED)
        low, high = percentile_interval(sample.draws)
        rows.append(common | _measure_columns(key, sample.problems, sample.value, low, high))
    gap_row = _gap_row(sweep, arm, records[0], samples)
    if gap_row is not None:
        reason = "; ".join(filter(None, (common["reason"], gap_row["reason"])))
        rows.append(common | gap_row | {"reason": reason})
    return rows or [common]


def _arm_common(sweep: str, arm: str, records: Sequence[TrialRecord]) -> Row:
    """Return the columns of an arm: what its trials share, time and tokens with loss as mean, memory as the largest."""
    shown = [config_columns(record.config) for record in records]
    finished = [record for record in records if record.status is Status.FINISHED]
    costs = [record.result for record in finished]
    verdicts = [cost["converged"] for cost in costs if cost.get("converged") is not None]
    return {
        **{column: value for column, value in shown[0].items() if all(row[column] == value for row in shown)},
        "seed": None,
        "sweep": sweep,
        "trial": arm,
        "split": _measured(records[0].config)["split"],
        "status": (finished[0] if finished else records[0]).status.value,
        "reason": "; ".join((*_unfinished(records), *dict.fromkeys(_alarms(records)))),
        **{key: _same(costs, key) for key in ("tokens", "trainable_params")},
        "tokens_with_loss": round(sum(cost["tokens_with_loss"] for cost in costs) / len(costs)) if costs else None,
        "seconds": sum(cost["seconds"] for cost in costs) / len(costs) if costs else None,
        "peak_memory_mib": max((cost["peak_memory_mib"] for cost in costs), default=None),
        "converged": all(verdicts) if verdicts else None,
    }


def _alarms(records: Sequence[TrialRecord]) -> list[str]:
    return [alarm.replace(";", ",") for record in records for alarm in record.alarms]


def _unfinished(records: Sequence[TrialRecord]) -> list[str]:
    """Return e.g. ['3 of 6 trials failed', 'none on base pair 1']."""
    counts = {status: sum(record.status is status for record in records) for status in Status}
    finished = counts.pop(Status.FINISHED)
    found = [f"{count} of {len(records)} trials {status}" for status, count in counts.items() if count]
    if finished:
        planned, measured = (
            {record.config["base"]["seed"] for record in of}
            for of in (records, [record for record in records if record.status is Status.FINISHED])
        )
        found += [f"none on base pair {base}" for base in sorted(planned - measured)]
    return found


def _gap_row(
    sweep: SweepRecord, arm: str, first: TrialRecord, samples: dict[str, dict[Key, list[TrialSample]]]
) -> Row | None:
    """Return the gap closed by `arm`; None for a reference, or where a sample it needs is missing."""
    skill = first.config["skill"]["name"]
    roles = sweep.gap.get(skill)
    if roles is None or arm in roles.values():
        return None
    op = family_named(first.config["data"]["family"]).headline_op
    own, best = (
        (Key("accuracy", "ood", op), Key("accuracy", "ood", op))
        if skill == "correction"
        else (Key("detect_auroc", "injected", op), Key("free_auroc", "injected", op))
    )
    sources = {arm: own, roles["lower"]: own, roles["upper"]: best}
    trials = {name: samples.get(name, {}).get(key, []) for name, key in sources.items()}
    bases = set.intersection(*(set(_bases(found)) for found in trials.values()))
    if not bases:
        return None
    value, lower, upper = (_pooled(name, found, sorted(bases)) for name, found in trials.items())
    gap = gap_closed(value, lower, upper)
    numbers = _measure_columns(own, value.problems, gap.value, gap.low, gap.high)
    return numbers | {"metric": "gap_closed", "reason": _gap_reason(gap, arm, trials)}


def _pooled(arm: str, trials: Sequence[TrialSample], bases: Sequence[int]) -> Sample:
    return pool(trials, arm=arm, bases=bases, seed=BOOTSTRAP_SEED)


def _gap_reason(gap: Gap, arm: str, trials: dict[str, list[TrialSample]]) -> str:
    """Return why there is no ratio, and which reference rests on fewer trials than the arm."""
    own = len(trials[arm])
    fewer = [
        f"reference {name} rests on {len(found)} of {own} trials" for name, found in trials.items() if len(found) < own
    ]
    return "; ".join(filter(None, (gap.reason, *fewer)))


def _measure_columns(key: Key, n: int, value: float | None, low: float | None, high: float | None) -> Row:
    numbers = {"value": value, "low": low, "high": high, "n": n}
    # Problems of real texts have no number of operations; their outcomes are kept under 0.
    return {"set": key.set, "op": key.op or None, "metric": key.metric, **numbers}


def _bases(trials: Sequence[TrialSample]) -> list[int]:
    return sorted({trial.base_seed for trial in trials})


def _same(costs: Sequence[dict[str, Any]], key: str) -> Any:
    values = {cost.get(key) for cost in costs}
    return values.pop() if len(values) == 1 else None
