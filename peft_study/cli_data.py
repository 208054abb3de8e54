"""The commands of `peft-study data`: draw, judge, keep and show synthetic problems.

What is written to standard output is data, one JSON object a line; progress and errors go to standard error.
"""

import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from peft_study.igsm.settings import StreamSettings
    from peft_study.igsm.stream import Document

data_app = typer.Typer(help="Draw, judge, keep and show the synthetic problems of iGSM.", no_args_is_help=True)

FamilyOption = Annotated[str, typer.Option(help="Problem family: nano, mini, med or hard.")]
OrderOption = Annotated[Literal["pq", "qp"], typer.Option(help="Problem or question first.")]
SplitOption = Annotated[Literal["train", "validation", "test"], typer.Option(help="Which problems.")]
OpOption = Annotated[int, typer.Option(min=0, help="Operations of each problem; 0 for the family's own law.")]
SeedOption = Annotated[int, typer.Option(help="Another seed gives other problems.")]
MistakesOption = Annotated[
    Literal["retry", "weak", "weak_strict", "miss"],
    typer.Option("--mistakes", help="Kind of the mistakes; there are none while --retry-rate is 0."),
]
RateOption = Annotated[float, typer.Option(help="How often a mistake is put in, from 0 to below 1.")]
ReaskOption = Annotated[bool, typer.Option("--reask", help="Ask another question of each problem, op counted anew.")]


def _settings(
    family: str, order: str, split: str, op: int, seed: int, kind: str, retry_rate: float, *, reask: bool = False
) -> "StreamSettings":
    from peft_study.igsm.families import family_named
    from peft_study.igsm.mistakes import check_retry_rate
    from peft_study.igsm.settings import StreamSettings

    check_retry_rate(retry_rate)
    return StreamSettings.model_validate(
        {
            "family": family_named(family),
            "order": order,
            "split": split,
            "ops": (op,) if op else (),
            "seed": seed,
            "kind": kind,
            "retry_rate": retry_rate,
            "reask": reask,
        }
    )


@data_app.command("sample")
def sample(
    n: Annotated[int, typer.Option("-n", min=1, help="How many problems.")] = 10,
    family: FamilyOption = "nano",
    order: OrderOption = "pq",
    split: SplitOption = "train",
    op: OpOption = 0,
    seed: SeedOption = 0,
    mistakes: MistakesOption = "retry",
    retry_rate: RateOption = 0.0,
    *,
    reask: ReaskOption = False,
) -> None:
    """Write problems as JSON lines.

    Keys: problem, solution, answer, modulus, op, ip, template_hash, and mistakes with the place of each among the
    sentences of the solution (from 0), its kind, and whether it could be computed there.
    """
    from peft_study.igsm.records import records

    for record in records(_settings(family, order, split, op, seed, mistakes, retry_rate, reask=reask), n):
        sys.stdout.write(json.dumps(record) + "\n")


@data_app.command("verify")
def verify(
    rule: Annotated[
        Literal["strict", "published"],
        typer.Option(help="`published`: parents, arithmetic and answer only, as the code of Part 2.2 judges."),
    ] = "strict",
    modulus: Annotated[int, typer.Option(min=1, help="Where a line has none.")] = 23,
) -> None:
    """Judge JSON lines with problem, solution and answer from standard input, one verdict line each.

    Names may be anybody's; nothing but the text is used. `first_wrong_step` is the place among the sentences of the
    solution, from 0, retractions included. Without an answer the last step alone says what was found. A line that
    cannot be read gets a verdict with ok null. Exit code 0 whatever the verdicts are.
    """
    from peft_study.igsm.records import verdict_record

    for line in sys.stdin.buffer:
        verdict = verdict_record(line.decode(errors="replace"), modulus, rule)
        sys.stdout.write(json.dumps(verdict) + "\n")


@data_app.command("build")
def build(
    folder: Annotated[Path, typer.Argument(help="Folder for the shards.")],
    tokens: Annotated[int, typer.Option(min=1, help="At least so many tokens.")] = 10_000_000,
    family: FamilyOption = "nano",
    order: OrderOption = "pq",
    split: SplitOption = "train",
    op: OpOption = 0,
    seed: SeedOption = 0,
    mistakes: MistakesOption = "retry",
    retry_rate: RateOption = 0.0,
    length: Annotated[int, typer.Option(min=0, help="Tokens of a window; 0 for the family's.")] = 0,
) -> None:
    """Write packed windows as shards of token ids, with a manifest and checksums; goes on where it was stopped."""
    from peft_study.igsm.shards import build_shards

    told: list[tuple[int, float]] = []

    def on_shard(done: int, total: int) -> None:
        told.append((done, time.monotonic()))
        if not done:
            return
        (before, started), (_, now) = told[0], told[-1]
        # What an earlier build has written says nothing of the speed of this one.
        left = f", {(now - started) / (done - before) * (total - done):.0f} s left" if done > before else ""
        with suppress(BrokenPipeError):  # nobody looks any more, but the shards are wanted
            typer.echo(f"{done} of {total} windows{left}", err=True)

    manifest = build_shards(
        _settings(family, order, split, op, seed, mistakes, retry_rate),
        folder,
        tokens=tokens,
        length=length or None,
        on_shard=on_shard,
    )
    typer.echo(f"{folder}: {manifest.windows * manifest.length} tokens in {len(manifest.shards)} shards")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command line, which takes it for no error."""
        raise BrokenPipeError


@data_app.command("show")
def show(
    n: Annotated[int, typer.Option("-n", min=1, help="How many problems.")] = 3,
    family: FamilyOption = "nano",
    op: OpOption = 4,
    retry_rate: RateOption = 0.5,
    order: OrderOption = "pq",
    split: SplitOption = "train",
    seed: SeedOption = 0,
    mistakes: MistakesOption = "retry",
    *,
    reask: ReaskOption = False,
) -> None:
    """Print problems with their mistakes, retractions and loss mask.

    In the solution, words in {braces} have no loss for correction. Decision points, where detection says right or
    wrong, are the word `as`: green where the step is right, red where it is a mistake.
    """
    from peft_study.igsm.stream import draw_document

    settings = _settings(family, order, split, op, seed, mistakes, retry_rate, reask=reask)
    console = _Console(highlight=False)
    for index in range(n):
        document = draw_document(settings, index)
        console.rule(f"problem {index}: op={document.problem.op}, mistakes: {len(document.mistakes)}")
        console.print(coloured(document, order))


def coloured(document: "Document", order: str = "pq") -> Text:
    """Return a document as text: a line for the problem, one for each sentence of the solution."""
    import numpy as np

    from peft_study.igsm.text import LEANING_SIGNS, SOLUTION, Kind, document_words
    from peft_study.skills.targets import correction_targets

    styles = {Kind.PROBLEM: "dim", Kind.AS: "bold green", Kind.MISTAKE: "red", Kind.MISTAKE_AS: "bold red"}
    styles |= {Kind.MISTAKE_DEFINE: "red", Kind.MISTAKE_AS_RIGHT: "bold green"}
    styles |= {Kind.BACK: "bold magenta", Kind.FINAL: "bold"}
    words = document_words(document.problem, document.solution, document.mistakes, order)
    # The word before the document is [END]; the first word of a window never has loss.
    learned = correction_targets(np.array([Kind.PROBLEM, *(word.kind for word in words)]), masked="step")[1:]
    text, in_solution, masked = Text(), False, False
    for word, has_loss in zip(words, learned, strict=True):
        hidden = in_solution and not has_loss
        text.append("}" if masked and not hidden else "")
        text.append("" if word.text in LEANING_SIGNS or not text.plain or text.plain.endswith("\n") else " ")
        text.append("{" if hidden and not masked else "")
        text.append(word.text, styles.get(word.kind, ""))
        masked = hidden
        in_solution = in_solution or word.text == SOLUTION
        if word.text == SOLUTION or (in_solution and word.text == "."):
            text.append("\n")
    return text
