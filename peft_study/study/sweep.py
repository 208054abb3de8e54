"""Run the trials of a plan: Optuna holds the study, MLflow shows the runs, and `result.json` alone decides.

A trial is done when its folder has a result. Workers run trials and write results; this process alone writes to the
databases. Both databases are brought in line with the results at the start, so a
kill at any moment loses and repeats nothing: the same command tells what was not told and runs what is missing.
"""

import hashlib
import json
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from rich.console import Console

from peft_study import __version__
from peft_study.errors import PeftStudyError
from peft_study.files import locked, write_atomic
from peft_study.records import Status
from peft_study.study.halving import MEASURE, State, brackets_of
from peft_study.study.launch import Event, Job, WorkerDiedError, Workers, default_workers
from peft_study.study.ledger import Ledger, grid_space, headline, search_space
from peft_study.study.plan import Plan, PlannedTrial, searched_trial
from peft_study.study.progress import SweepProgress
from peft_study.study.reuse import reuse
from peft_study.study.runners import BankedTrials, TrialRunner, check_bank, train_trial
from peft_study.study.stores import best_effort, check_stores, read_metrics, read_result, storage_errors
from peft_study.study.sweep_file import Sweep
from peft_study.study.tracking import Tracker, TrialRun
from peft_study.study.weights import BaseWeights

PAUSE = "waits at its rung"
"""Reason of a trial that leaves its worker to go on later."""


class Outcome(NamedTuple):
    """How a sweep ended."""

    statuses: dict[str, Status]
    """Trial id to status."""
    reasons: dict[str, str]
    """Failed trial's id to its reason."""
    changed: bool
    """Whether anything was run or written."""
    digest: str
    """Names the plan and its results: what a report is made from."""
    reported: bool
    """Whether the report on the parent run was made from the same."""


def run_sweep(
    plan: Plan,
    runs: Path,
    *,
    run: TrialRunner | None = None,
    workers: int | None = None,
    bank: int = 1,
    retry_failed: bool = False,
    reuse_from: Path | None = None,
    console: Console | None = None,
) -> Outcome:
    """Run what is missing of `plan` under the folder `runs` and return how all its trials ended.

    What is finished in the published table of the sweep in the folder `reuse_from` is not run again.

    `workers` trials run side by side, each in a process of its own; 0 runs them in this process, None lets the
    machine decide. In each, `bank` trials train their adapters together over one frozen base.
    """
    name = plan.sweep.name
    busy = f"sweep {name} is already running in {runs / name}; wait for it, or stop it and run the same command again"
    check_stores(runs)
    with storage_errors(runs), locked(runs / name / ".lock", busy=busy):
        console = console or Console()
        if bank > 1:
            check_bank(plan)
        if reuse_from is not None:
            taken = reuse(plan, runs, reuse_from, over_failed=retry_failed)
            console.print(f"{taken} finished trials taken from {reuse_from}", soft_wrap=True)
        sweep = RunningSweep(plan, runs, console)
        try:
            sweep.reconcile(retry_failed=retry_failed)
            run = run or (train_trial if bank == 1 else BankedTrials(bank))
            sweep.run_all(run, workers_for(plan.sweep, workers), seats=bank)
            return sweep.end()
        except BaseException:
            with best_effort():
                sweep.tracker.stop_parent()
            raise
        finally:
            sweep.close()


def workers_for(sweep: Sweep, asked: int | None) -> int:
    """Return how many trials of `sweep` run side by side: as many as are asked for, else what the machine allows."""
    if asked is not None:
        return asked
    # Every draw of a search is to see all that came before it.
    return 1 if sweep.search else default_workers()


class RunningSweep:
    """One sweep while it runs."""

    def __init__(self, plan: Plan, runs: Path, console: Console) -> None:
        self.plan, self.runs, self.console = plan, runs, console
        self.sweep, self.folder = plan.sweep, runs / plan.sweep.name
        self.results: dict[str, dict[str, Any]] = {}
        self.trials = list(plan.trials)
        """Grows while a search draws."""
        self.active: dict[str, TrialRun] = {}
        """Trial id to its run in MLflow, while it runs."""
        self.paused: dict[str, TrialRun] = {}
        """The same, while it waits at a rung or for a worker to go on from there."""
        self.brackets = brackets_of(plan)
        self.changed = False
        self.retry_failed = False
        self.bases = BaseWeights()
        self.ledgers: dict[str, Ledger] = {}
        """Cell to its study; a grid has one for all its cells."""
        self._open_ledgers()
        self.tracker = Tracker(runs, plan.sweep)

    def _open_ledgers(self) -> None:
        search = self.sweep.search
        if search is None:
            ledger = Ledger(self.runs, self.sweep.name, space=grid_space(self.plan))
            self.ledgers = dict.fromkeys(self.plan.cells, ledger)
            return
        for cell, flat in self.plan.cells.items():
            # A study of its own for each cell and its settings: what one has learned says nothing about another.
            settings = json.dumps([flat, search.model_dump(exclude={"trials"})], sort_keys=True)
            name = f"{self.sweep.name}/{cell}/{hashlib.sha256(settings.encode()).hexdigest()[:8]}"
            self.ledgers[cell] = Ledger(
                self.runs, name, direction=search.better, pruner=search.pruner, space=search_space(search)
            )

    def close(self) -> None:
        """Let go of the databases."""
        for ledger in self._studies():
            ledger.close()

    def _studies(self) -> set[Ledger]:
        return set(self.ledgers.values())

    def reconcile(self, *, retry_failed: bool) -> None:
        """Bring both databases in line with the results that are there; write nothing where they are."""
        self.retry_failed = retry_failed
        for ledger in self._studies():
            ledger.put_back_leftovers()
        self.tracker.kill_leftovers()
        if self.sweep.search is not None:
            self._recall_drawn()
        for planned in self.trials:
            self._check_base(planned)
        if retry_failed:
            self._forget_failed()
        if not self.tracker.plan_is_logged(self.trials):
            self._change()
            self.tracker.log_plan(self.trials)
        for bracket in dict.fromkeys(self.brackets.values()):
            bracket.recall(self.folder)
        self._write_losers()
        known = {ledger: ledger.newest() for ledger in self._studies()}
        for planned in self.trials:
            result = read_result(self.folder / planned.trial)
            ledger = self.ledgers[planned.arm]
            frozen = known[ledger].get(planned.trial)
            told = frozen is not None and ledger.is_told(frozen, result, self._metric)
            if frozen is None or (frozen.state.is_finished() and not told):
                self._change()
                ledger.enqueue(planned)
                told = False
            if result is not None:
                self._record(planned, result, told=told)

    def _forget_failed(self) -> None:
        for planned in self.trials:
            result = read_result(self.folder / planned.trial)
            if result is not None and result["status"] == Status.FAILED:
                (self.folder / planned.trial / "result.json").unlink()

    def _check_base(self, planned: PlannedTrial) -> None:
        """Raise StoreError where a trial was begun on other weights than those its base has now."""
        remedy = f"move {self.folder} away to run the sweep anew"
        self.bases.check(self.folder / planned.trial, planned.config, remedy)

    def _recall_drawn(self) -> None:
        """Plan again what earlier runs of a search have drawn."""
        for cell, ledger in self.ledgers.items():
            drawn = (searched_trial(self.plan, cell, frozen.params) for frozen in ledger.trials())
            self.trials += {planned.trial: planned for planned in drawn}.values()

    def _record(self, planned: PlannedTrial, result: dict[str, Any], *, told: bool) -> None:
        """Bring both databases in line with one result."""
        self.results[planned.trial] = result
        ledger = self.ledgers[planned.arm]
        if not told:
            self._change()
            ledger.tell(planned.trial, result, self._metric)
        if not self.tracker.is_complete(result):
            self._change()
            self.tracker.start(planned, ledger.number(planned.trial)).finish(result, self.folder / planned.trial)

    @property
    def _metric(self) -> str | None:
        """What a search optimises; None for the headline."""
        return self.sweep.search.metric if self.sweep.search else None

    def _change(self) -> None:
        """Show the sweep as running before the first thing is written."""
        if not self.changed:
            self.tracker.open_parent()
        self.changed = True

    def _next(self, progress: SweepProgress | None = None) -> PlannedTrial | None:
        """Return the next trial to run, in the order of the plan; None where none can run now."""
        for planned in self.trials:
            trial = planned.trial
            goes_on = trial not in self.brackets or self.brackets[trial].states[trial] is State.RUNS
            if trial in self.active or not goes_on:
                continue
            if trial in self.results and self.results[trial]["status"] == Status.PRUNED and trial in self.brackets:
                # Of more cells, of which some were added, it is among the best.
                self._forget(planned, progress)
            if trial not in self.results:
                return planned
        return self._draw(progress) if self.sweep.search is not None else None

    def _draw(self, progress: SweepProgress | None) -> PlannedTrial | None:
        """Return the next trial that a search draws and that has no result; None where it has drawn all."""
        assert self.sweep.search is not None
        for cell, ledger in self.ledgers.items():
            while (planned := ledger.draw(self.plan, cell, self.sweep.search)) is not None:
                self._change()
                ledger.enqueue(planned)
                self.trials.append(planned)
                self.tracker.log_plan(self.trials)
                self._check_base(planned)
                folder = self.folder / planned.trial
                result = read_result(folder)
                if result is None:
                    return planned
                # What one pruner has stopped another may let go on.
                if result["status"] == Status.PRUNED or (self.retry_failed and result["status"] == Status.FAILED):
                    (folder / "result.json").unlink()
                    return planned
                self._record(planned, result, told=False)
                if progress is not None:
                    progress.expect(planned.trial, result.get("tokens") or 0, done=True)
        return None

    def _forget(self, planned: PlannedTrial, progress: SweepProgress | None) -> None:
        """Let a trial that has ended be run anew."""
        self._change()
        (self.folder / planned.trial / "result.json").unlink()
        del self.results[planned.trial]
        self.ledgers[planned.arm].enqueue(planned)
        if progress is not None:
            progress.expect_again(planned.trial)

    def run_all(self, run: TrialRunner, num_workers: int, *, seats: int = 1) -> None:
        """Run what is missing; what stops the sweep from outside leaves the trials that ran waiting."""
        planned = self._next()
        if planned is None:
            return
        num_trials = self.sweep.search.trials * len(self.plan.cells) if self.sweep.search else len(self.trials)
        try:
            with (
                SweepProgress(self.console, num_trials) as progress,
                Workers(num_workers, run, seats=seats) as workers,
            ):
                for each in self.trials:
                    result = self.results.get(each.trial)
                    tokens = result.get("tokens") if result else None
                    progress.expect(each.trial, tokens or each.config.training.tokens, done=result is not None)
                self._expect_less(progress)
                while True:
                    while planned is not None:
                        self._start(planned, workers, progress)
                        planned = self._next(progress) if workers.has_room else None
                    if not self.active:
                        return
                    for event in workers.events():
                        self._hear(event, workers, progress)
                    planned = self._next(progress) if workers.has_room else None
        except BaseException as error:
            self._put_back()
            if isinstance(error, WorkerDiedError):
                raise PeftStudyError(str(error)) from error
            raise

    def _start(self, planned: PlannedTrial, workers: Workers, progress: SweepProgress) -> None:
        """Give a trial to a worker."""
        self._change()
        tracked = self.paused.pop(planned.trial, None)
        if tracked is None:
            ledger = self.ledgers[planned.arm]
            ledger.start(planned.trial)
            tracked = self.tracker.start(planned, ledger.number(planned.trial))
        self.active[planned.trial] = tracked
        if planned.trial not in self.brackets:
            progress.expect(planned.trial, planned.config.training.tokens)
        if search := self.sweep.search:
            left = search.trials * len(self.plan.cells) - len(self.trials)
            progress.expect("to be drawn", round(left * fmean(each.config.training.tokens for each in self.trials)))
        progress.start_trial(planned.trial)
        folder = self.folder / planned.trial
        workers.submit(Job(planned.config, folder, planned.trial, planned.arm, self.sweep.name))

    def _hear(self, event: Event, workers: Workers, progress: SweepProgress) -> None:
        """Act on what a worker says."""
        job = event.job
        if event.kind == "progress":
            progress.update(job.trial, event.value)
        elif event.kind == "metrics":
            step, metrics = event.value
            self.active[job.trial].log(step, metrics)
            workers.go_on(job, stop=self._reason_to_stop(job, step, metrics))
            self._expect_less(progress)
        elif event.kind == "error":
            raise event.value
        elif event.kind == "stopped" and event.value == PAUSE:
            self.paused[job.trial] = self.active.pop(job.trial)
            progress.pause_trial(job.trial)
            self._end_losers(progress)
        elif event.kind == "stopped":
            planned = self._planned(job.trial)
            self._end(planned, self._write_pruned(planned, event.value), progress)
        else:
            if job.trial in self.brackets and event.value["status"] == Status.FAILED:
                self.brackets[job.trial].fail(job.trial)
            self._end(self._planned(job.trial), event.value, progress)
            self._end_losers(progress)

    def _end(self, planned: PlannedTrial, result: dict[str, Any], progress: SweepProgress) -> None:
        """Tell everybody how a trial has ended: one that was running, or paused, now or when the sweep was stopped."""
        trial, ledger = planned.trial, self.ledgers[planned.arm]
        ledger.tell(trial, result, self._metric)
        tracked = self.active.pop(trial, None) or self.paused.pop(trial, None)
        if tracked is None:
            tracked = self.tracker.start(planned, ledger.number(trial))
        tracked.finish(result, self.folder / trial)
        self.results[trial] = result
        progress.end_trial(
            trial, _line(result, self._metric), tokens=result.get("tokens"), bad=result["status"] == Status.FAILED
        )

    def _expect_less(self, progress: SweepProgress) -> None:
        """Tell the progress how many tokens the trials of brackets may be expected to read."""
        for trial, bracket in self.brackets.items():
            if trial not in self.results:
                progress.expect(trial, bracket.expected_tokens(trial))

    def _end_losers(self, progress: SweepProgress) -> None:
        for planned, result in self._write_losers():
            self._end(planned, result, progress)

    def _write_losers(self) -> list[tuple[PlannedTrial, dict[str, Any]]]:
        """Write the results of trials that are out of their brackets and have none, and return both."""
        losers: list[tuple[PlannedTrial, dict[str, Any]]] = []
        for bracket in dict.fromkeys(self.brackets.values()):
            for trial, reason in bracket.losers().items():
                if trial not in self.active and read_result(self.folder / trial) is None:
                    planned = self._planned(trial)
                    losers.append((planned, self._write_pruned(planned, reason)))
        return losers

    def _write_pruned(self, planned: PlannedTrial, reason: str) -> dict[str, Any]:
        """Write the result of a trial that was stopped on purpose, a status without measures, and return it."""
        folder = self.folder / planned.trial
        metrics = folder / "checkpoint" / "metrics.jsonl"
        costs = ("tokens_with_loss", "trainable_params", "seconds", "peak_memory_mib", "converged")
        result = {
            "trial": planned.trial,
            "arm": planned.arm,
            "sweep": self.sweep.name,
            "status": Status.PRUNED.value,
            "reason": reason,
            "config": planned.config.model_dump(mode="json"),
            "tokens": max(tokens for tokens, _ in read_metrics(metrics)),
            **dict.fromkeys(costs),
            "provenance": {},
            "measures": [],
        }
        shutil.copyfile(metrics, folder / "metrics.jsonl")
        write_atomic(folder / "result.json", json.dumps(result, indent=1))
        shutil.rmtree(folder / "checkpoint")
        return result

    def _planned(self, trial: str) -> PlannedTrial:
        return next(planned for planned in self.trials if planned.trial == trial)

    def _reason_to_stop(self, job: Job, step: int, metrics: dict[str, float]) -> str:
        """Return why a trial is to leave its worker, '' where it goes on."""
        bracket = self.brackets.get(job.trial)
        if bracket is not None:
            if not bracket.hear(job.trial, step, metrics):
                return ""
            self.ledgers[job.arm].report(job.trial, step, metrics[MEASURE])
            state = bracket.states[job.trial]
            if state is State.OUT:
                return bracket.reason(job.trial)
            return PAUSE if state is State.WAITS else ""
        name = f"validation/{self._metric}"
        if self.sweep.search is None or self.sweep.search.pruner == "none" or name not in metrics:
            return ""
        ledger = self.ledgers[job.arm]
        ledger.report(job.trial, step, metrics[name])
        if not ledger.should_prune(job.trial):
            return ""
        return f"worse than others at {step} tokens: {name} {metrics[name]:.4g}"

    def _put_back(self) -> None:
        """Let the trials that were running wait for the next time."""
        arms = {planned.trial: planned.arm for planned in self.trials}
        for trial, tracked in (self.active | self.paused).items():
            with best_effort():
                self.ledgers[arms[trial]].put_back(trial)
            with best_effort():
                tracked.end(Status.KILLED)

    def end(self) -> Outcome:
        """End the sweep's run, unless it is ended, and return how all went."""
        statuses = {planned.trial: Status(self.results[planned.trial]["status"]) for planned in self.trials}
        failed = [trial for trial, status in statuses.items() if status is Status.FAILED]
        self.tracker.close_parent(Status.FAILED if failed else Status.FINISHED)
        ended = [(self.results[planned.trial], planned.alarms) for planned in self.trials]
        about = [__version__, self.sweep.model_dump(mode="json"), ended]
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        reasons = {trial: self.results[trial]["reason"] for trial in failed}
        return Outcome(statuses, reasons, self.changed, digest, self.tracker.reported() == digest)


def _line(result: dict[str, Any], metric: str | None) -> str:
    """Return how a trial ended as one line."""
    text = f"{result['trial']} {result['status']}"
    if result["status"] != Status.FINISHED:
        return f"{text}: {result['reason']}"
    named = headline(result, metric)
    shown = f", {named[0]} {named[1]:.3f}" if named else ""
    return f"{text}{shown}"
