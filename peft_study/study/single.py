"""One trial outside of any sweep, with a run in MLflow like those of sweeps."""

from pathlib import Path
from typing import Any

from rich.console import Console

from peft_study.errors import ConfigError, PeftStudyError
from peft_study.files import locked
from peft_study.records import Status
from peft_study.study.config import CONFIG_FILE, TrialConfig, build_config, config_hash, flatten, read_yaml
from peft_study.study.plan import PlannedTrial, trial_id
from peft_study.study.progress import SweepProgress
from peft_study.study.stores import best_effort, check_stores, read_result, storage_errors
from peft_study.study.sweep_file import Sweep
from peft_study.study.tracking import TAG_LIMIT, Tracker
from peft_study.study.weights import BaseWeights

ALONE = Sweep(name="finetune", question="Trials that were run alone, each with the config on its own page.")
"""What holds the runs of such trials together in MLflow."""


def alone_folder(config: TrialConfig, runs: Path) -> Path:
    """Return where a trial goes that is run alone."""
    return runs / ALONE.name / trial_id(ALONE.name, config)


def run_alone(config: TrialConfig, runs: Path, folder: Path | None, console: Console) -> tuple[dict[str, Any], Path]:
    """Run a trial in `folder`, by default one under `runs`, unless it is finished there; return result and folder.

    A run that was killed or has failed goes on from its last checkpoint. ConfigError where the folder holds another
    trial, StoreError where it was begun on other weights.
    """
    planned = PlannedTrial(trial_id(ALONE.name, config), ALONE.name, config)
    folder = folder or alone_folder(config, runs)
    check_stores(runs)
    busy = f"{folder} is in use by another process; wait for it, or stop it"
    with storage_errors(folder), locked(folder / ".lock", busy=busy):
        result = read_result(folder)
        if result is not None and result["trial"] != planned.trial:
            raise ConfigError(f"{folder} holds trial {result['trial']} of another config; choose another --folder")
        if result is None and _begun(folder) not in (None, config_hash(config)):
            raise ConfigError(f"{folder} holds a run of another config that was begun; choose another --folder")
        if result is None or result["status"] == Status.FAILED:
            BaseWeights().check(folder, config, f"remove {folder}, or choose another --folder")
        tracker = Tracker(runs, ALONE)
        if result is None or result["status"] == Status.FAILED:
            result = _train(planned, folder, tracker, console)
        else:
            for note in result.get("notes", ()):
                console.print(note, soft_wrap=True, markup=False)
            if not tracker.is_complete(result):
                tracker.start(planned, 0).finish(result, folder)
        tracker.close_parent(Status.FINISHED)
    return result, folder


def _begun(folder: Path) -> str | None:
    """Return the hash of the config of the run that was begun in `folder`, None where none was."""
    path = folder / CONFIG_FILE
    return config_hash(build_config(flatten(read_yaml(path)))) if path.is_file() else None


def _run_trial(*args: Any, **options: Any) -> dict[str, Any]:
    """Run a trial on all cores where it is one of real texts; those of the study have one, as in sweeps."""
    from peft_study.study.trial import run_trial
    from peft_study.training.machine import prepare_process, usual_threads

    prepare_process(threads=usual_threads() if args[0].pretrained else 1)
    return run_trial(*args, **options)


def _train(planned: PlannedTrial, folder: Path, tracker: Tracker, console: Console) -> dict[str, Any]:
    """Run a trial and tell MLflow as it goes."""
    run = tracker.start(planned, 0)
    try:
        with SweepProgress(console, 1) as progress:
            progress.expect(planned.trial, planned.config.training.tokens)
            progress.start_trial(planned.trial)
            result = _run_trial(
                planned.config,
                folder,
                trial=planned.trial,
                arm=planned.arm,
                sweep=ALONE.name,
                on_progress=lambda report: progress.update(planned.trial, report),
                on_metrics=run.log,
                on_note=progress.say,
            )
            progress.end_trial(planned.trial, f"{planned.trial} {result['status']}")
    except BaseException as error:
        with best_effort():
            # What a user can mend is no result, but MLflow says why the run ended.
            if isinstance(error, PeftStudyError):
                run.end(Status.FAILED, {"reason": str(error)[:TAG_LIMIT]})
            else:
                run.end(Status.KILLED)
            tracker.stop_parent()
        raise
    run.finish(result, folder)
    return result
