"""Worker processes that die."""

from pathlib import Path

import pytest

from peft_study.study.config import build_config
from peft_study.study.launch import Job, WorkerDiedError, Workers


def test_a_worker_that_died_while_idle_is_named_with_the_trial_it_was_given(tmp_path: Path) -> None:
    jobs = [Job(build_config({}), tmp_path, trial, "arm", "sweep") for trial in ("first", "second")]
    # Any function that a process can look up will do: it fails, and its worker is idle then.
    with Workers(1, len) as workers:
        workers.submit(jobs[0])
        while workers.running:
            for event in workers.events():
                assert event.kind == "error"
        (worker,) = workers.workers
        assert worker.process is not None
        worker.process.kill()
        worker.process.join()
        # A BrokenPipeError would be taken for our output's reader having gone, and for success.
        with pytest.raises(
            WorkerDiedError, match=r"the worker of trial second ended with exit code -9 .* run the same"
        ):
            workers.submit(jobs[1])
