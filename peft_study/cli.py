"""The command line: parse, call, exit code. Heavy libraries are imported by the commands that need them.

Exit code 0: done; 1: a trial has failed; 2: something the user can put right, said in one line; 130: stopped.
"""

import json
import math
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from peft_study import __version__
from peft_study.cli_data import data_app
from peft_study.errors import PeftStudyError
from peft_study.telling import Progress, Teller

if TYPE_CHECKING:
    from collections.abc import Callable

    from peft_study.study.progress import SweepProgress
    from peft_study.study.sweep import Outcome


class _Commands(TyperGroup):
    """Commands that say in one line what the user can put right."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PeftStudyError as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(2) from error
        except BrokenPipeError:
            # Whoever read our output has seen enough; nothing more can be written, not even at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except KeyboardInterrupt:
            typer.echo("stopped; the same command goes on from here", err=True)
            raise typer.Exit(130) from None


HELP = """Compare how two skills, correcting an error and detecting one, respond to the same fine-tuning.

`peft-study sweep quick` runs the whole comparison, with a table and a figure at its end; everything it makes lies
under `runs/`. The other commands are its parts.
"""
app = typer.Typer(
    cls=_Commands,
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.add_typer(data_app, name="data")

RunsOption = Annotated[
    Path,
    typer.Option("--runs", envvar="PEFT_STUDY_RUNS", help="Folder for everything that runs leave behind."),
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Changes to the config, e.g. training.tokens=65536 or method.rank=4."
    ),
]
RUNS = Path("runs")
ResultsOption = Annotated[Path, typer.Option(help="Folder of the published tables.")]
RESULTS = Path("results")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    # A polite kill is a stop like Ctrl-C: what runs is recorded as stopped and goes on the next time.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@app.command()
def sweep(
    name: Annotated[str, typer.Argument(help="Name of a file under sweeps/, or the path of one.")] = "quick",
    overrides: OverridesArgument = None,
    *,
    plan: Annotated[bool, typer.Option("--plan", help="Print what would run, and how long, and stop.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed trials again.")] = False,
    reuse: Annotated[
        bool, typer.Option("--reuse", help="Take the finished trials of the published table in --results.")
    ] = False,
    results: ResultsOption = RESULTS,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Trials side by side; left out for one a core (one on a GPU).")
    ] = None,
    bank: Annotated[
        int,
        typer.Option(
            min=1,
            help="Trials in each worker whose adapters train together over one frozen base: for a GPU that one adapter "
            "does not fill; on a CPU it gains nothing.",
        ),
    ] = 1,
    runs: RunsOption = RUNS,
) -> None:
    """Run a sweep to its table, figure and report.

    Only what is missing is run: stop it, or kill it, and the same command goes on where it was. Exit code 1 where a
    trial has failed.
    """
    from peft_study.study.plan import build_plan
    from peft_study.study.sweep_file import read_sweep

    # In a file or a pipe lines may be as long as the tables want.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    read = read_sweep(name, overrides or ())
    planned = build_plan(read, strict=not plan)
    if plan:
        from peft_study.study.costs import plan_table
        from peft_study.study.reuse import reusable
        from peft_study.study.sweep import workers_for

        found = reusable(planned, runs, results, over_failed=retry_failed) if reuse else ()
        taken = {each.trial: kept.result for each, kept in found}
        console.print(plan_table(planned, runs, workers_for(read, workers), taken))
        return
    from peft_study.study.sweep import run_sweep

    outcome = run_sweep(
        planned,
        runs,
        workers=workers,
        bank=bank,
        retry_failed=retry_failed,
        reuse_from=results if reuse else None,
        console=console,
    )
    _show_answer(outcome, read.name, runs, console)
    for trial, reason in outcome.reasons.items():
        typer.echo(f"failed: {trial}: {reason}", err=True)
    if outcome.reasons:
        again = f"`make sweep SWEEP={name} RETRY=1`, or --retry-failed, runs them again"
        typer.echo(f"{len(outcome.reasons)} trials failed; {again}", err=True)
        raise typer.Exit(1)


def _show_answer(outcome: "Outcome", sweep_name: str, runs: Path, console: Console) -> None:
    """Print the table, and write the report unless there is one of the same results."""
    from analysis.export import results_path
    from analysis.report import terminal_table
    from analysis.table import read_results

    page = runs / sweep_name / "report.html"
    if not (outcome.reported and page.exists() and results_path(sweep_name, runs).exists()):
        page = _write_report(sweep_name, runs, outcome.digest)
    console.print(terminal_table(read_results(results_path(sweep_name, runs))))
    console.print(f"report: {page}", soft_wrap=True)


def _write_report(sweep_name: str, runs: Path, digest: str = "") -> Path:
    """Write table, figures and report, put them on the sweep's run, and return the page."""
    from analysis.report import write_report
    from peft_study.study.stores import storage_errors
    from peft_study.study.tracking import log_parent_artifacts

    with storage_errors(runs):
        page = write_report(sweep_name, runs)
    files = sorted(path for path in page.parent.iterdir() if path.suffix in (".csv", ".html", ".md", ".png", ".svg"))
    log_parent_artifacts(sweep_name, files, runs, reported=digest)
    return page


@app.command()
def pretrain(
    overrides: OverridesArgument = None,
    *,
    base: Annotated[Literal["error-free", "retry"], typer.Option(help="Without or with mistakes.")] = "error-free",
    family: Annotated[str, typer.Option(help="Problem family.")] = "nano",
    seed: Annotated[int, typer.Option(min=0, help="Both bases of a pair have the same.")] = 0,
    n: Annotated[int, typer.Option("-n", min=1, help="Problems of each op that the base is measured on.")] = 1024,
    runs: RunsOption = RUNS,
) -> None:
    """Pretrain a base, measure it, and write it with its card under checkpoints/.

    Takes an hour or more on CPU. Stop it, or kill it, and the same command goes on from its last checkpoint. Changes
    are those of the pretraining config, such as training.tokens=1000000; with start=FOLDER it goes on from a base.
    """
    from peft_study.files import locked
    from peft_study.igsm.families import family_named
    from peft_study.study.bases import make_base
    from peft_study.study.config import build, flatten, overrides_layer
    from peft_study.study.progress import SweepProgress
    from peft_study.study.stores import storage_errors
    from peft_study.training.machine import prepare_process
    from peft_study.training.pretrain import PretrainConfig

    family_named(family)
    asked = {"family": family, "base": base, "seed": seed, **overrides_layer(overrides or ())}
    config = build(PretrainConfig, flatten(PretrainConfig().model_dump()), asked)
    name = f"{family}-{base}-seed{seed}"
    console = Console(highlight=False)
    prepare_process(threads=1)
    lock = locked(runs / "pretrain" / f".{name}.lock", busy=f"{name} is already being pretrained")
    with storage_errors(runs), lock, SweepProgress(console, 1) as progress:
        progress.expect(name, config.training.tokens)
        progress.start_trial(name)
        teller = Teller(lambda report: progress.update(name, report))
        folder = make_base(config, runs, teller, n=n)
        progress.end_trial(name, f"{name} finished")
    console.print(f"base: {folder}", soft_wrap=True)


def _shown(progress: "SweepProgress", name: str) -> "Callable[[Progress], None]":
    """Return what shows how far `name` is; it starts when that is first told, for what is refused has not begun."""

    def show(report: Progress) -> None:
        if name not in progress.running:
            progress.expect(name, report.total)
            progress.start_trial(name)
        progress.update(name, report)

    return show


@app.command()
def finetune(
    overrides: OverridesArgument = None,
    *,
    model: Annotated[
        str, typer.Option(help="Any causal language model: Hub name or folder; left out for a base of the study.")
    ] = "",
    data: Annotated[
        str, typer.Option(help="gsm8k, math, igsm, a file (JSON lines, CSV, Parquet), or a `datasets` name.")
    ] = "",
    quant: Annotated[
        Literal["none", "nf4", "int8"] | None, typer.Option(help="How the model's weights are held.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of config keys, changed by the overrides.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where the trial goes; left out for one under --runs.")] = None,
    runs: RunsOption = RUNS,
) -> None:
    """Train and evaluate one trial, outside of any sweep, with a run in MLflow.

    Examples: `peft-study finetune skill.name=detection method.name=lora method.rank=4` on a base of the study;
    `peft-study finetune --model Qwen/Qwen3-0.6B --data gsm8k --quant nf4` on any model, where the method is LoRA of
    rank 16 unless it is said. A learning rate that is not set is the tuned one, or with --model a usual one. With
    method.name=none the base is evaluated as it is. Under `accelerate launch` or torchrun the processes share the work.
    """
    from peft_study.study.config import build_config, flatten, overrides_layer, read_yaml
    from peft_study.study.plan import resolve_rate
    from peft_study.study.tuned import TunedRates

    layer = flatten(read_yaml(config)) if config else {}
    named = {"pretrained.name": model, "corpus.name": data, "pretrained.quantization": quant}
    short = {key: value for key, value in named.items() if value}
    usual = {"method.name": "lora", "method.rank": 16} if model else {}
    resolved = resolve_rate(build_config(usual, layer, short, overrides_layer(overrides or ())), TunedRates())
    from peft_study.study.single import alone_folder, run_alone

    if int(os.environ.get("RANK", "0")) > 0:
        from peft_study.study.texts import follow

        follow(resolved, folder or alone_folder(resolved, runs))
        return
    console = Console(highlight=False)
    result, folder = run_alone(resolved, runs, folder, console)
    if result["reason"]:
        again = "the same command tries again, from the last checkpoint"
        typer.echo(f"failed: {result['trial']}: {result['reason']}; {again}", err=True)
        raise typer.Exit(1)
    console.print(measures_table({_measure_name(m): m for m in result["measures"]}))
    costs = [f"{step} {seconds:.0f} s" for step, seconds in result.get("seconds_by_step", {}).items()]
    if costs:
        console.print(f"cost: {', '.join(costs)}; {result['peak_memory_mib']:.0f} MiB at most", soft_wrap=True)
    console.print(f"trial: {folder}", soft_wrap=True)


def _measure_name(measure: dict[str, Any]) -> str:
    op = "" if measure["op"] is None else f" op {measure['op']}"
    return f"{measure['set']}{op} {measure['metric']}"


def measures_table(measures: dict[str, dict[str, Any]]) -> Table:
    """Return named measures as a table."""
    table = Table("metric")
    for column in ("value", "low", "high", "n"):
        table.add_column(column, justify="right")
    for name, measure in measures.items():
        numbers = ("" if measure[key] is None else f"{measure[key]:.4g}" for key in ("value", "low", "high"))
        table.add_row(name, *numbers, str(measure["n"]))
    return table


@app.command()
def solve(
    file: Annotated[Path, typer.Argument(help="File of JSON lines; solutions that are in it are not written again.")],
    overrides: OverridesArgument = None,
    *,
    model: Annotated[str, typer.Option(help="Any causal language model: Hub name or folder.")],
    data: Annotated[str, typer.Option(help="gsm8k, math, or a file of questions, solutions and answers.")],
    quant: Annotated[
        Literal["none", "nf4", "int8"] | None, typer.Option(help="How the model's weights are held.")
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="Solutions of each problem.")] = 1,
) -> None:
    """Have a model solve the problems that `finetune` would read, and keep its solutions, graded.

    `finetune --data ... corpus.mistakes=own corpus.samples=FILE` then learns from the model's own mistakes. They are
    drawn at temperature 0.7 unless testing.temperature says otherwise; corpus.limit takes fewer of those that are
    learned from, corpus.validation_share of those held out. Stop it, and the same command goes on.
    """
    from peft_study.study.config import build_config, overrides_layer
    from peft_study.study.progress import SweepProgress
    from peft_study.study.solutions import write_solutions
    from peft_study.training.machine import prepare_process, usual_threads

    named = {"pretrained.name": model, "corpus.name": data, "pretrained.quantization": quant}
    usual = {"testing.temperature": 0.7}
    short = {key: value for key, value in named.items() if value}
    config = build_config(usual, short, overrides_layer(overrides or ()))
    prepare_process(threads=usual_threads())
    console = Console(highlight=False)
    with SweepProgress(console, 1) as progress:
        show = _shown(progress, file.name)

        def count(done: int, total: int) -> None:
            show(Progress(done, total, math.nan, "solve", done / max(1, total)))

        grades = write_solutions(config, file, draws, count)
        progress.end_trial(file.name, f"{file.name} finished")
    total = max(1, sum(grades.values()))
    shares = ", ".join(f"{grade} {count} ({count / total:.0%})" for grade, count in grades.most_common())
    console.print(f"{file}: {shares}", soft_wrap=True)


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a base, or of a trial, also one of --model.")],
    skill: Annotated[Literal["correction", "detection"], typer.Option(help="What is measured.")] = "correction",
    op: Annotated[int | None, typer.Option(min=1, help="Operations of each iGSM problem; left out for 4.")] = None,
    split: Annotated[Literal["validation", "test"], typer.Option(help="Which problems.")] = "test",
    n: Annotated[int, typer.Option("-n", min=1, help="How many problems.")] = 512,
    seed: Annotated[int, typer.Option(help="Another seed draws other problems.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a checkpoint on one skill: every metric with its 95 % interval and the number of items behind it."""
    from peft_study.study.evaluate import evaluate_checkpoint
    from peft_study.study.progress import SweepProgress

    with SweepProgress(Console(stderr=True), 1) as progress:
        teller = Teller(_shown(progress, checkpoint.name))
        measures = evaluate_checkpoint(checkpoint, skill, op, split, n, seed, teller.phase)
    if as_json:
        typer.echo(json.dumps(measures))
    else:
        Console().print(measures_table(measures))


@app.command()
def export(
    trial: Annotated[Path, typer.Argument(help="Folder of a finished trial.")],
    target: Annotated[Path, typer.Argument(help="New folder.")],
    merged: Annotated[bool, typer.Option("--merged", help="Write a plain model with the adapter merged in.")] = False,
) -> None:
    """Write what a trial has trained to a folder, to be used elsewhere: its adapter, or a whole model."""
    from peft_study.study.export import export_trial

    typer.echo(export_trial(trial, target, merged=merged))


@app.command()
def report(
    name: Annotated[str, typer.Argument(help="Name of a sweep that has been run.")] = "quick", runs: RunsOption = RUNS
) -> None:
    """Write the table, figures and report of a sweep again, as HTML and Markdown."""
    typer.echo(_write_report(name, runs))


@app.command()
def publish(
    name: Annotated[str, typer.Argument(help="Name of a sweep that has been run.")] = "quick",
    runs: RunsOption = RUNS,
    results: ResultsOption = RESULTS,
) -> None:
    """Copy a sweep's table, report and figures to the published results, which other sweeps and the README read."""
    from analysis.report import publish as publish_table

    results.mkdir(parents=True, exist_ok=True)
    typer.echo(publish_table(name, runs, results))


@app.command()
def pages(results: ResultsOption = RESULTS) -> None:
    """Make the parts of README and docs/results.md that come from published tables anew."""
    from analysis.blocks import refill_pages

    for path in refill_pages(results):
        typer.echo(path)


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port on 127.0.0.1.")] = 5000, runs: RunsOption = RUNS
) -> None:
    """Show all runs in the browser with MLflow, on this machine only; Ctrl-C ends it."""
    from peft_study.study.mlflow_store import ui_address, ui_command

    command = ui_command(runs, port=port)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    typer.echo(f"MLflow: {ui_address(runs, port=port)} (Ctrl-C ends it)")
    sys.stdout.flush()
    os.execv(command[0], command)


def main() -> None:
    """Run the command line."""
    app(prog_name="peft-study")
