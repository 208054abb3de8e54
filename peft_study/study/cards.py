"""Model cards, written from records."""

from typing import Any


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
    before = record.get("continued_from")
    while before:
        lines.append(
            f"| continued from | a base of {before['training']['tokens']:,} tokens: `{before['command']}`, "
            f"commit {before['provenance']['commit']} |"
        )
        before = before.get("continued_from")
    return lines


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
        "| setting | value |",
        "|---|---|",
        f"| shape | Qwen3, {shape['layers']} layers, width {shape['width']}, {shape['heads']} heads, "
        f"MLP {shape['mlp_width']}, untied; {training['trainable_params']:,} parameters |",
        *_continued_lines(record),
        f"| tokens read | {training['tokens']:,} ({training['tokens_with_loss']:,} with loss), "
        f"windows of {family['max_tokens']} |",
        f"| time | {training['seconds'] / 60:.0f} minutes on {record['provenance']['device']}, "
        f"{record['provenance']['threads']} thread(s), {training['precision']}, {training['attention']} attention |",
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
