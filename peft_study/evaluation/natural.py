"""What a pretrained model is measured on, before its training and after it: solutions or verdicts, and the loss.

Texts become tokens by the encoder of the training, so that what is measured is read as what was learned.
"""

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
from torch import nn

from peft_study.corpora.config import CorpusConfig
from peft_study.corpora.corpus import Corpus
from peft_study.errors import ConfigError
from peft_study.evaluation.cells import Findings
from peft_study.evaluation.config import NaturalEvaluationConfig
from peft_study.evaluation.natural_detecting import detection
from peft_study.evaluation.natural_solving import Solution, correction, solve
from peft_study.evaluation.writing import measuring
from peft_study.igsm.text import BACK
from peft_study.models.pretrained import PretrainedLearner
from peft_study.records import Measure
from peft_study.skills.config import DataConfig, SkillConfig
from peft_study.skills.encode import Encoder
from peft_study.stats import ratio_interval
from peft_study.telling import OnPhase, unheard
from peft_study.training.batches import Batch, batch_loss


def natural_findings(
    learner: PretrainedLearner,
    skill: SkillConfig,
    config: CorpusConfig,
    evaluation: NaturalEvaluationConfig,
    *,
    corpus: Corpus,
    encoder: Encoder,
    batches: Iterable[Batch] | None = None,
    baseline: Sequence[Solution] | None = None,
    data: DataConfig | None = None,
    on_phase: OnPhase = unheard,
) -> Findings:
    """Measure a learner on its skill, and the loss on `batches`, of one validation window each, if there are any.

    `corpus` is what `config` describes, loaded for `evaluation.split`; `data` says which stream `igsm` is. `baseline`:
    the base's own solutions (`natural_solving.solve`), for gains and for `own`. A corpus that has nothing to grade has
    no measure of correction but the loss. ConfigError where programs would have to be run and may not be.
    """
    data = data or DataConfig()
    found = Findings()
    if skill.name == "detection":
        found = detection(learner, corpus, encoder, evaluation, baseline=baseline, on_phase=on_phase)
    elif corpus.grader:
        igsm = config.name == "igsm"
        found = correction(
            solve(learner, corpus, encoder, evaluation, family=data.family, on_share=partial(on_phase, "solve")),
            split=evaluation.split,
            retraction=BACK if igsm else config.retraction,
            grader=corpus.grader,
            baseline=baseline,
            retracts=data.retry_rate > 0 if igsm else config.mistakes != "none" and config.retry_rate > 0,
        )
    if batches is not None:
        on_phase("measure the loss", None)
        found.measures.insert(0, loss_measure(learner, batches))
    return found


def loss_measure(learner: nn.Module, batches: Iterable[Batch]) -> Measure:
    """Return the mean loss over all positions of validation batches; its interval resamples batches: one window each.

    ConfigError where nothing has loss.
    """
    with measuring(learner):
        losses = [(float(batch_loss(learner, batch)), len(batch.answers_N)) for batch in batches]
    counts = np.array([count for _, count in losses if count], float)
    if not len(counts):
        raise ConfigError("no window of the validation documents has loss; give more of them, or larger windows")
    sums = np.array([loss * count for loss, count in losses if count])
    interval = ratio_interval(sums, counts, seed=0)
    return Measure("validation", "stream", None, "loss", float(sums.sum() / counts.sum()), *interval, len(counts))
