"""Model cards, written from records."""

import shlex
from typing import Any

import yaml

from peft_study.corpora.config import CorpusConfig
from peft_study.evaluation.config import NaturalEvaluationConfig
from peft_study.models.config import PretrainedConfig
from peft_study.study.config import TrialConfig, flatten, overrides_from


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _law(ratio: float) -> str:
    return "uniform" if ratio == 1 else f"falling by {ratio:g}"


def _continued_lines(record: dict[str, Any]) -> list[str]:
    """Return a row for the law of op, and one for each base that this one was continued from."""
    lines, config, own = [], record["config"], record["family"]["op_ratio"]
    if own is not None:
        share = config["op_ratio_share"]
        later = f" for {100 * share:g} % of the tokens, then {_law(own)}" if share < 1 else ""
        lines.append(f"| law of op | {_law(config['op_ratio']) + later if share else _law(own)} |")
    lines += [
        f"| continued from | a part of {part['training']['tokens']:,} tokens: `{part['command']}`, "
        f"commit {part['provenance']['commit']} |"
        for part in _parts(record)[1:]
    ]
    return lines


def _parts(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parts that pretraining went on in, the last one first."""
    before = record.get("continued_from")
    return [record, *(_parts(before) if before else [])]


def _how_long(record: dict[str, Any]) -> list[str]:
    """Return the rows of tokens and time."""
    training, parts = record["training"], _parts(record)
    lines = [
        f"| tokens read | {training['tokens']:,} ({training['tokens_with_loss']:,} with loss), "
        f"windows of {record['family']['max_tokens']} |",
        f"| time | {training['seconds'] / 60:.0f} minutes on {record['provenance']['device']}, "
        f"{record['provenance']['threads']} thread(s), {training['precision']}, {training['attention']} attention |",
    ]
    if len(parts) > 1:
        tokens, seconds = (sum(part["training"][key] for part in parts) for key in ("tokens", "seconds"))
        lines = [line.replace(" |", ", last part |", 1) for line in lines]
        lines.append(f"| in all {len(parts)} parts | {tokens:,} tokens, {seconds / 3600:.1f} hours |")
    return lines


def _where_start_is(record: dict[str, Any]) -> list[str]:
    """Return what the command needs beside itself."""
    num_parts = len(_parts(record))
    if num_parts == 1:
        return []
    return [
        f"This is the last of {num_parts} parts, which are in the table, the first one last; each goes on from the "
        "base that the one before left in `checkpoints/`, moved to the folder that `start` names.",
        "",
    ]


def base_card(record: dict[str, Any]) -> str:
    """Return the model card of a base, every number from its record."""
    config, family, measured, training = (record[key] for key in ("config", "family", "measured", "training"))
    data = (
        "error-free solutions"
        if config["base"] == "error-free"
        else (f"solutions with `retry` mistakes (rate {config['retry_rate']}), `Define X as` of mistakes without loss")
    )
    shape = config["architecture"]
    lines = [
        "---",
        "license: mit",
        "library_name: transformers",
        "tags: [igsm, synthetic, error-correction]",
        "---",
        "",
        f"# {config['family']} base, {config['base']}, seed {config['seed']}",
        "",
        f"Pretrained from scratch on iGSM `{config['family']}` (modulus {family['modulus']}, op <= {family['op_max']}, "
        f"up to {family['ip_max']} instance parameters, {family['letter_pool']} letters), {data}; "
        f"loss on solutions, and with weight {config['problem_weight']} on problems.",
        "",
        f"    {record['command']}",
        "",
        *_where_start_is(record),
        "| setting | value |",
        "|---|---|",
        f"| shape | Qwen3, {shape['layers']} layers, width {shape['width']}, {shape['heads']} heads, "
        f"MLP {shape['mlp_width']}, untied; {training['trainable_params']:,} parameters |",
        *_continued_lines(record),
        *_how_long(record),
        f"| optimiser | {config['training']['optimizer']}, peak rates {config['training']['muon_lr']} (matrices) "
        f"and {config['training']['lr']} (rest), {config['training']['batch_windows']} windows a step |",
        "",
        f"Accuracy (strict: every step and the answer), test split, {measured['n']} problems an op, 95 % Wilson "
        "intervals:",
        "",
        "| op | accuracy % | low | high |",
        "|---|---|---|---|",
    ]
    for op, (value, low, high) in measured["accuracy"].items():
        known = "" if int(op) <= family["op_max"] else " (out of distribution)"
        lines.append(f"| {op}{known} | {_percent(value)} | {_percent(low)} | {_percent(high)} |")
    headline = family["headline_op"]
    gain, low, high = measured["perfect_detector_gain"]
    lines += [
        "",
        f"Where solutions of op {headline} first leave the way (wrong or unnecessary step):",
        "",
        "| kind | solutions |",
        "|---|---|",
        *(f"| {kind} | {count} |" for kind, count in measured["departures"].items()),
        "",
        "Regenerating with the perfect detector (at most 10 retries) changes accuracy there by "
        f"{_percent(gain)} points [{_percent(low)}, {_percent(high)}], paired over problems.",
        "",
    ]
    if record["acceptance"]:
        verdict = "accepted" if record["acceptance"]["accepted"] else "not accepted"
        lines += [
            f"Acceptance rule of the study: **{verdict}**.",
            "",
            "| condition | figure | rule | holds |",
            "|---|---|---|---|",
        ]
        for name, condition in record["acceptance"]["conditions"].items():
            holds = "yes" if condition["holds"] else "no"
            lines.append(f"| {name} | {condition['figure']:.3f} | {condition['rule']} | {holds} |")
        lines.append("")
    return "\n".join(lines)


def command_of(config: TrialConfig) -> str:
    """Return the command that runs a trial on real texts again: what differs from the defaults."""
    usual = flatten(TrialConfig(pretrained=PretrainedConfig(name="-"), corpus=CorpusConfig()).model_dump(mode="json"))
    usual |= flatten(NaturalEvaluationConfig().model_dump(mode="json"), "testing.")
    return f"peft-study finetune {shlex.join(overrides_from(flatten(config.model_dump(mode='json')), usual))}"


def adapter_card(config: TrialConfig, result: dict[str, Any]) -> str:
    """Return the model card of what a trial on real texts has trained, every number from its result."""
    pretrained, corpus, method = config.pretrained, config.corpus, config.method
    assert pretrained is not None
    assert corpus is not None
    revision = result["base_commit"] or pretrained.revision
    head = {
        "base_model": pretrained.name,
        **({"base_model_revision": revision} if revision else {}),
        "library_name": "transformers" if method.name == "full" else "peft",
        "pipeline_tag": "text-generation",
        "tags": ["peft_study", method.name, config.skill.name],
    }
    rank = f", rank {method.rank}, targets {method.targets}" if method.name == "lora" else ""
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False).rstrip(),
        "---",
        "",
        f"# {pretrained.name}: {config.skill.name} by {method.name} on {corpus.name}",
        "",
        f"    {command_of(config)}",
        "",
        "| what | value |",
        "|---|---|",
        f"| base | {pretrained.name}{f' at {revision}' if revision else ''}, quantization {pretrained.quantization} |",
        f"| data | {result['corpus']['source']}; SHA-256 {result['corpus']['digest'][:16]} |",
        f"| method | {method.name}{rank}; {result['trainable_params']:,} trained values |",
        f"| tokens read | {result['tokens']:,}, {result['tokens_with_loss']:,} with loss |",
        f"| time of training | {result['seconds'] / 60:.1f} minutes in {result['precision'] or 'no'} precision |",
        f"| peak rate | {config.training.lr} of {config.training.optimizer}, {config.training.batch_windows} windows "
        f"of {corpus.window} tokens a step |",
        f"| seed | {config.seed} |",
        *(f"| note | {note} |" for note in result["notes"]),
        "",
        "| measured | set | value | low | high | n |",
        "|---|---|---|---|---|---|",
    ]
    for measure in result["measures"]:
        numbers = ("" if measure[key] is None else f"{measure[key]:.4g}" for key in ("value", "low", "high"))
        name = f"{measure['split']} {measure['set']}"
        lines.append(f"| {measure['metric']} | {name} | {' | '.join(numbers)} | {measure['n']} |")
    return "\n".join([*lines, ""])
