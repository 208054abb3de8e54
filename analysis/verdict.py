"""What the numbers say, in sentences: every number in them comes from the table."""

from collections.abc import Sequence

from analysis.comparisons import CONTRAST, Comparison
from analysis.figures.learning_rate import LearningRateInfo
from analysis.gap import NO_GAP
from analysis.summary import (
    SKILLS,
    ArmSummary,
    Counts,
    Interval,
    Role,
    missing_for_claim,
    name_of,
    needed_for_claim,
    on_curve,
)

MINUS = "\N{MINUS SIGN}"
_SCALES = {
    "correction": "share of problems solved, out of distribution",
    "detection": "AUROC at the decision points of injected mistakes",
}

_TEXT_SCALES = {
    "correction": "share of problems solved",
    "detection": "AUROC at the ends of steps, injected mistakes",
}


def show(interval: Interval | None, digits: int) -> str:
    """Return a value with its interval, '' where there is none.

    >>> show(Interval(0.531, -0.02, 1.0), 2)
    '0.53 [−0.02, 1.00]'
    """
    if interval is None:
        return ""
    value, low, high = (fixed(number, digits) for number in interval)
    return f"{value} [{low}, {high}]"


def show_gap(line: ArmSummary) -> str:
    """Return the gap that an arm closes, 'no gap' where its references cannot be told apart, '' where none is known."""
    return NO_GAP if line.no_gap else show(line.gap, 2)


def fixed(value: float, digits: int) -> str:
    """Return a value with as many digits.

    >>> fixed(-0.312, 2)
    '−0.31'
    """
    return f"{value:.{digits}f}".replace("-", MINUS)


def signed(value: float, digits: int) -> str:
    """Return a difference with its sign.

    >>> signed(-0.25, 2), signed(0.25, 1)
    ('−0.25', '+0.2')
    """
    return f"{value:+.{digits}f}".replace("-", MINUS)


def standing(counts: Counts, *, first_look: bool) -> str:
    """Return how much may be claimed: a first look, what is missing, or that nothing is."""
    missing = missing_for_claim(counts)
    *others, last = [f"{count:,} {what}" for count, _, what in needed_for_claim(counts)]
    need = f"{', '.join(others)} and {last}" if others else last
    if first_look or missing:
        head = "**First look, no verdict.**" if first_look else "**No verdict.**"
        lacks = f"; missing: {_listed(missing)}" if missing else ""
        return f"{head} A claim needs {need}{lacks}. What follows describes these runs and nothing beyond them."
    return f"A claim needs {need}; these runs have them."


def headline_sentences(lines: Sequence[ArmSummary], found: Sequence[Comparison]) -> list[str]:
    """Return a paragraph for each skill, and one that contrasts them."""
    paragraphs = [text for skill in SKILLS if (text := _skill_text(skill, [x for x in lines if x.skill == skill]))]
    contrast = _contrast([each for each in found if each.topic == CONTRAST])
    return paragraphs + ([contrast] if contrast else [])


def _skill_text(skill: str, lines: Sequence[ArmSummary]) -> str:
    lines = [line for line in lines if on_curve(line, lines)]
    lower = _of_role(lines, Role.CONTROL if skill == "correction" else Role.PROBE)
    upper = _of_role(lines, Role.UPPER)
    trained = [line for line in lines if line.role in (Role.ADAPTER, Role.FULL) and line.raw]
    if not any((lower, upper, trained)):
        return ""
    ends = [f"{name_of(line)} {show(line.raw, 3)}" for line in (lower, upper) if line]
    scale = _SCALES[skill] if lines[0].op else _TEXT_SCALES[skill]
    parts = [f"**{skill.capitalize()}** ({scale}). References: {_listed(ends) or 'none measured'}."]
    if trained:
        parts.append(f"Trained: {_listed([f'{_name(line)} {show(line.raw, 3)}{_lacks(line)}' for line in trained])}.")
    if any(line.no_gap for line in trained):
        parts.append("There is no gap between the references, so no ratio is given.")
    closed = [f"{_name(line)} {show(line.gap, 2)}" for line in trained if line.gap]
    if closed:
        parts.append(f"Gap closed: {_listed(closed)}.")
    same = [_name(line) for line in trained if line.gap and line.gap.low <= 0 <= line.gap.high]
    if same:
        parts.append(f"Not distinguishable from the {(lower or trained[0]).role}: {_listed(same)}.")
    return " ".join(parts)


def _contrast(found: Sequence[Comparison]) -> str:
    """Return where the gaps closed by the two skills differ, like against like."""
    texts = {
        "higher": "detection closes more of its gap than correction at",
        "lower": "correction closes more of its gap than detection at",
        "not distinguishable": "the two are not distinguishable at",
    }
    parts = []
    for verdict, text in texts.items():
        named = [_difference(each, each.second.partition(": ")[2], 2) for each in found if each.verdict == verdict]
        if named:
            parts.append(f"{text} {_listed(named)}")
    return f"**Side by side** (difference of the gaps closed), {'; '.join(parts)}." if parts else ""


def _difference(each: Comparison, name: str, digits: int) -> str:
    """Return an arm with what it differs by, and what must be known of that."""
    return f"{name} ({'; '.join((signed(each.difference.value, digits), *each.notes))})"


def comparison_sentences(found: Sequence[Comparison]) -> list[str]:
    """Return for each measure which arms are higher, lower and not distinguishable, with what they differ by."""
    sentences = []
    for measure in dict.fromkeys(each.measure for each in found):
        of_verdict: dict[str, list[str]] = {"higher": [], "lower": [], "not distinguishable": []}
        for each in found:
            if each.measure == measure:
                of_verdict[each.verdict].append(_difference(each, each.first, 3))
        parts = [f"{verdict}: {_listed(names)}" for verdict, names in of_verdict.items() if names]
        sentences.append(f"**{measure}**: {'; '.join(parts)}.")
    return sentences


def learning_rate_sentences(info: LearningRateInfo) -> list[str]:
    """Return the best rates, and the alarms."""
    best = [f"{tuned.cell}: {tuned.best.lr:g}" for tuned in info.tuned]
    edges = [str(tuned.cell) for tuned in info.tuned if tuned.on_edge]
    sentences = [f"Best learning rates: {'; '.join(best)}."] if best else []
    if edges:
        sentences.append(f"**Alarm:** on the edge of the grid, so a better rate may lie beyond: {'; '.join(edges)}.")
    return sentences


def _of_role(lines: Sequence[ArmSummary], role: Role) -> ArmSummary | None:
    return next((line for line in lines if line.role is role and line.raw), None)


def _name(line: ArmSummary) -> str:
    """Return how a sentence calls an arm: what is not the default is named."""
    row, name = line.row, line.role.value
    if line.role is Role.ADAPTER:
        name += f" rank {row['rank']}" + ("" if row["targets"] == "all-linear" else f" on {row['targets']}")
        name += "" if row["embeddings"] == "rows" else f" with embeddings={row['embeddings']}"
    return f"{name} unmasked" if line.skill == "correction" and not row["mask"] else name


def _lacks(line: ArmSummary) -> str:
    """Return on how many of its trials a line rests, '' where that is all."""
    return f" ({line.finished} of {line.planned} trials)" if line.finished < line.planned else ""


def _listed(items: Sequence[str]) -> str:
    return ", ".join(items)
