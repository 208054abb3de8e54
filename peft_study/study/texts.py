"""A trial on real texts: any causal language model on any corpus, in the study's loop, measured before and after.

In several processes (`accelerate launch`, torchrun) all train, and the first alone measures and writes.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peft_study.corpora.config import CorpusConfig
from peft_study.corpora.corpus import Corpus, load_corpus
from peft_study.errors import CheckpointError, ConfigError
from peft_study.evaluation.cells import Findings
from peft_study.evaluation.config import NaturalEvaluationConfig
from peft_study.evaluation.grading import check_allowed
from peft_study.evaluation.natural import natural_findings
from peft_study.evaluation.natural_solving import Solution, read_solutions, solution_rows, solve
from peft_study.evaluation.rewriting import open_rewriter
from peft_study.evaluation.writing import stop_ids
from peft_study.files import locked, write_atomic
from peft_study.models.device import this_device, this_process
from peft_study.models.hub import load_tokenizer, stored_dtype
from peft_study.models.pretrained import PretrainedLearner
from peft_study.records import Status
from peft_study.rng import derive_seed
from peft_study.skills.encode import Encoded, Encoder
from peft_study.skills.packing import CorpusStream, pack
from peft_study.skills.targets import NOT_A_DECISION, RIGHT, WRONG
from peft_study.study.cards import adapter_card
from peft_study.study.config import CONFIG_FILE, TRAINED_METHODS, TrialConfig, build_config, flatten, read_yaml
from peft_study.study.stores import read_result
from peft_study.telling import OnPhase, OnShare, Point, Teller, unheard
from peft_study.training.machine import prepare_process, settled_pretrained, usual_threads
from peft_study.training.natural import CorpusTask, corpus_batch
from peft_study.training.run import TrainingSummary
from peft_study.training.sharding import whole
from peft_study.training.supervised import train

BASELINE = "baseline.jsonl"
"""Of a trial's folder: what the base wrote before training."""


class TextTrial:
    """What a trial on texts is made of."""

    def __init__(self, config: TrialConfig, kernels: Path, *, saved: Path | None = None) -> None:
        """Load model and corpus; `kernels` is the folder that keeps what is measured of this machine."""
        assert config.pretrained is not None
        assert config.corpus is not None
        if config.method.name == "probe" and config.skill.name != "detection":
            raise ConfigError("method probe only tells right from wrong; set skill.name=detection, or method.name=lora")
        self.config, self.testing = config, config.testing or NaturalEvaluationConfig()
        self.training, self.pretrained = settled_pretrained(config.training, config.pretrained, kernels)
        self.corpus_config: CorpusConfig = config.corpus
        self.corpus: Corpus = self._load_corpus()
        check_allowed(self.corpus.grader, self.testing)
        self.learner = PretrainedLearner(self.pretrained, config.method, config.seed, saved=saved)
        # As it is known by now, for the loop and the record.
        self.training = self.training.model_copy(
            update={"attention": self.learner.model.config._attn_implementation}  # pyright: ignore[reportPrivateUsage]
        )
        self.learner.place(this_device())
        self.encoder = Encoder(self.learner.tokenizer, config.skill, config.corpus)
        self.notes = [f"corpus: {self.corpus.source}", *self.learner.notes]
        """What a reader should know of the model and of what it reads, a line each."""

    def _load_corpus(self) -> Corpus:
        """Load the corpus; of several processes that need a model's mistakes one asks for them, the others wait."""
        corpus, asked = self.corpus_config, self.corpus_config.rewriter
        opens = partial(open_rewriter, asked) if asked else None
        answers = Path(asked.answers) if asked else None
        load = partial(load_corpus, corpus, self.config.data, self.config.seed, split=self.testing.split)
        if corpus.mistakes == "own":
            return load(takes=Encoder(load_tokenizer(self.pretrained), self.config.skill, corpus).takes)
        with locked(answers.with_name(f".{answers.name}.lock"), wait=True) if answers else nullcontext():
            return load(rewriter=opens)

    def task(self) -> CorpusTask:
        """Return what the run reads, validation windows included; ConfigError where it can be neither learned from nor
        measured on."""
        corpus, learner = self.corpus_config, self.learner
        longest = getattr(learner.model.config.get_text_config(), "max_position_embeddings", None)
        if longest and corpus.window > longest:
            raise ConfigError(
                f"corpus.window must be at most the {longest} positions of {self.pretrained.name}, but is "
                f"{corpus.window}; set corpus.window={longest} or less"
            )
        read, measured = (self.encoder.encode_all(each) for each in (self.corpus.train, self.corpus.validation))
        if corpus.packing and not learner.isolates():
            raise ConfigError(
                f"{self.pretrained.name} lets the documents of a window see each other; set corpus.packing=false"
            )
        is_detection = self.config.skill.name == "detection"
        if is_detection:
            self._check_verdicts(read.encoded)
        stream = CorpusStream(read.encoded, corpus.window, learner.pad_id, corpus.packing, self.config.seed)
        validation = pack(measured.encoded, corpus.window, learner.pad_id, corpus.packing)
        order = np.random.default_rng(derive_seed(self.testing.seed, "loss windows")).permutation(len(validation.ids))
        rows = np.sort(order[: self.testing.loss_windows])
        kept = validation.rows(rows)
        if not (kept.verdicts != NOT_A_DECISION if is_detection else kept.learned).any():
            raise ConfigError(
                f"none of {len(validation.ids)} validation windows has anything to measure the loss on; set "
                "corpus.validation, or a larger corpus.validation_share or corpus.window"
            )
        self.notes.append(
            f"windows: {len(stream)} of {corpus.window} tokens, {stream.fill:.0%} filled; {read.truncated} of "
            f"{read.documents} documents are cut off and {read.left_out} left out"
        )
        return CorpusTask(stream, kept, verdict=is_detection)

    def _check_verdicts(self, read: Sequence[Encoded]) -> None:
        """Raise ConfigError unless there are right steps and wrong ones to learn from."""
        right, wrong = (sum(int((each.verdicts == kind).sum()) for each in read) for kind in (RIGHT, WRONG))
        if not (right and wrong):
            raise ConfigError(
                f"skill.name=detection needs right steps and wrong ones, but {self.corpus.source} has {right} and "
                f"{wrong}; set corpus.mistakes and corpus.retry_rate (data.retry_rate for igsm), or give solutions in "
                "steps"
            )

    def baseline(self, folder: Path, on_share: OnShare) -> list[Solution] | None:
        """Return the base's own solutions, kept in `folder` for a run that goes on; None where nothing is graded."""
        if not self.corpus.grader or not self.testing.baseline:
            return None
        kept = folder / BASELINE
        if kept.is_file():
            return read_solutions([json.loads(line) for line in kept.read_text().splitlines()], self.corpus)
        family = self.config.data.family
        solutions = solve(self.learner, self.corpus, self.encoder, self.testing, family=family, on_share=on_share)
        write_atomic(kept, "".join(json.dumps(row) + "\n" for row in solution_rows(solutions)))
        return solutions

    def measure(
        self, task: CorpusTask | None, baseline: list[Solution] | None, on_phase: OnPhase = unheard
    ) -> Findings:
        """Measure the learner on its skill, and the loss on the windows of `task`."""
        batches = None
        if task is not None:
            device = self.learner.model.device
            batches = [
                corpus_batch(task.windows.rows([row]), device, verdict=task.verdict)
                for row in range(len(task.windows.ids))
            ]
        return natural_findings(
            self.learner,
            self.config.skill,
            self.corpus_config,
            self.testing,
            corpus=self.corpus,
            encoder=self.encoder,
            batches=batches,
            baseline=baseline,
            data=self.config.data,
            on_phase=on_phase,
        )

    def train(self, task: CorpusTask, folder: Path, on_point: Callable[[Point], None]) -> TrainingSummary:
        """Train the learner, from the checkpoint in `folder` if there is one."""
        if self.config.method.name not in TRAINED_METHODS or not self.config.training.tokens:
            return TrainingSummary(0, 0, 0, 0.0, [], None)
        sharded = self.pretrained.shard or os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("true", "1")
        config, learner = self.config, self.learner
        summary = train(
            learner, task, self.training, folder=folder, seed=config.seed, on_point=on_point, sharded=sharded
        )
        if sharded and this_process().num_processes > 1:
            trained: dict[str, Tensor] = {}
            for name, value in learner.trainable().items():
                gathered = whole(value.detach())
                if this_process().is_main_process:
                    trained[name] = gathered.cpu()
            if this_process().is_main_process:
                # A model that is shared out computes only where all processes do, and measuring is for one.
                self.learner = PretrainedLearner(self.pretrained, config.method, config.seed)
                self.learner.place(this_device())
                self.learner.load_trained(trained)
                self.learner.eval()
        return summary


def follow(config: TrialConfig, folder: Path) -> None:
    """Train beside the first process, which measures and writes; nothing where the trial is finished."""
    if config.pretrained is None:
        raise ConfigError("trials of the study run in one process; start it without a launcher, or give --model")
    result = read_result(folder)
    if result is not None and result["status"] != Status.FAILED:
        return
    prepare_process(threads=usual_threads())
    trial = TextTrial(config, folder.parent)
    trial.train(trial.task(), folder / "checkpoint", lambda _: None)


def run_texts(
    config: TrialConfig,
    folder: Path,
    teller: Teller,
    on_note: Callable[[str], None],
) -> dict[str, Any]:
    """Train and measure; return the part of the result that a failed trial has not.

    `teller` is told how far it is, `on_note` what is read and adapted. Samples, outcomes, adapter and
    card go to `folder`.
    """
    started = time.monotonic()
    teller.phase("load")
    trial = TextTrial(config, folder.parent)
    task = trial.task()
    for note in trial.notes:
        on_note(note)
    loaded = time.monotonic()
    baseline = trial.baseline(folder, partial(teller.phase, "solve as the base"))
    measured = time.monotonic()
    summary = trial.train(task, folder / "checkpoint", teller.point)
    if config.method.name in TRAINED_METHODS:
        trial.learner.save(folder / "adapter")
    before = time.monotonic()
    found = trial.measure(task, baseline, teller.phase)
    np.savez_compressed(folder / "outcomes.npz", **found.arrays)  # pyright: ignore[reportArgumentType]
    (folder / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in found.samples))
    result = {
        "tokens": summary.tokens,
        "tokens_with_loss": summary.tokens_with_loss,
        "trainable_params": summary.trainable_params,
        "seconds": round(summary.seconds, 2),
        "seconds_by_step": {
            "load": round(loaded - started, 2),
            "measure the base": round(measured - loaded, 2),
            "train": round(summary.seconds, 2),
            "measure": round(time.monotonic() - before, 2),
        },
        "converged": summary.converged,
        "precision": summary.precision,
        "attention": summary.attention,
        "departures": found.departures,
        "matched": trial.learner.matched,
        "verdict_ids": trial.learner.verdict_ids,
        "stop_ids": sorted(stop_ids(trial.learner.model, trial.learner.tokenizer)),
        "notes": trial.notes,
        "corpus": {"source": trial.corpus.source, "digest": trial.corpus.digest},
        "base_commit": getattr(trial.learner.model.config, "_commit_hash", None) or "",
        "measures": [measure._asdict() for measure in found.measures],
    }
    if config.method.name in TRAINED_METHODS:
        (folder / "adapter" / "README.md").write_text(adapter_card(config, result))
    return result


def is_text_trial(folder: Path) -> bool:
    """Return whether the trial in `folder` is one on real texts."""
    path = folder / CONFIG_FILE
    return path.is_file() and "pretrained" in read_yaml(path)


def open_trial(folder: Path, changed: dict[str, Any] | None = None, *, as_stored: bool = False) -> TextTrial:
    """Return the finished trial in `folder` with what it has trained, to be measured again.

    `changed` are fields of `testing` to be other than they were. With `as_stored` a base that is not quantised is held
    in the precision of its checkpoint (fp16 in fp32), whatever the trial computed in.
    """
    config = build_config(flatten(read_yaml(folder / CONFIG_FILE)))
    saved = folder / "adapter"
    trained = config.method.name in TRAINED_METHODS
    if trained and not saved.is_dir():
        raise CheckpointError(f"{folder} has no {saved.name}, so its trial is not finished; run it to its end")
    if changed:
        testing = config.testing or NaturalEvaluationConfig()
        config = config.model_copy(update={"testing": testing.model_copy(update=changed)})
    if as_stored and config.pretrained and config.pretrained.quantization == "none":
        short, name = ("bf16", "bfloat16") if stored_dtype(config.pretrained) is torch.bfloat16 else ("fp32", "float32")
        held = {
            "pretrained": config.pretrained.model_copy(update={"dtype": name}),
            "training": config.training.model_copy(update={"precision": short}),
        }
        config = config.model_copy(update=held)
    trial = TextTrial(config, folder.parent, saved=saved if trained else None)
    trial.learner.eval()
    return trial
