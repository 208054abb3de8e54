"""All cells of a trial: which sets, under which names, on the same problems for every learner."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from peft_study.decoding.engine import generate
from peft_study.evaluation.cells import Evaluator
from peft_study.evaluation.config import EvaluationConfig
from peft_study.evaluation.problems import Attempt, read_attempt
from peft_study.igsm.families import NANO
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.stream import WindowStream
from peft_study.igsm.text import step_words
from peft_study.igsm.tokenizer import word_ids
from peft_study.models.config import MethodConfig
from peft_study.models.learner import Learner
from peft_study.records import METRICS
from peft_study.skills.config import DataConfig, SkillConfig

MakeLearner = Callable[..., Learner]

N = 6
KNOWN, HEADLINE = NANO.op_max, NANO.headline_op


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    return Evaluator(EvaluationConfig(n=N), DataConfig(retry_rate=0.0), mistakes_rate=0.4)


@pytest.fixture(scope="module")
def baseline(evaluator: Evaluator) -> list[Attempt]:
    """Return made-up attempts of a base: every other one begins with its second step."""
    attempts: list[Attempt] = []
    for index, document in enumerate(evaluator.problems(HEADLINE)):
        steps = document.solution.steps[index % 2 :]
        words = [word.text for step in steps for word in step_words(document.problem, step)]
        words += ["[ANSWER]", str(document.solution.answer), "[END]"]
        attempts.append(read_attempt([word_ids(NANO)[word] for word in words], document, "pq"))
    return attempts


@pytest.fixture
def told(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float | None]]:
    """Return what the evaluator tells of its phases."""
    told: list[tuple[str, float | None]] = []
    monkeypatch.setattr(evaluator, "on_phase", lambda phase, share: told.append((phase, share)))
    return told


def test_correction_has_its_cells(
    make_learner: MakeLearner, evaluator: Evaluator, baseline: list[Attempt], told: list[tuple[str, float | None]]
) -> None:
    learner = make_learner(MethodConfig(name="lora", rank=2)).eval()
    found = evaluator.correction(learner, baseline, free=True)
    phases = [f"solve op {KNOWN}", f"solve op {HEADLINE}", "judge injected", "judge own"]
    assert told == [(phase, 0.0) for phase in phases]
    cells = {(measure.set, measure.op) for measure in found.measures}
    assert {("id", KNOWN), ("ood", HEADLINE), ("injected", HEADLINE)} <= cells
    assert {measure.metric for measure in found.measures} <= METRICS.keys()
    assert {measure.split for measure in found.measures} == {"test"}
    for name in (f"correct_id_{KNOWN}", f"correct_ood_{HEADLINE}"):
        assert found.arrays[name].shape == (N,)
        assert found.arrays[name].dtype == np.uint8
    assert found.arrays[f"free_injected_{HEADLINE}_score"].dtype == np.float32
    assert found.arrays[f"free_injected_{HEADLINE}_problem"].max() == N - 1
    assert [sample["op"] for sample in found.samples] == [KNOWN] * N + [HEADLINE] * N
    assert all(sum(counts.values()) == N for counts in found.departures.values())


def test_free_detector_is_only_measured_where_it_was_asked_for(
    make_learner: MakeLearner, evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peft_study.evaluation.cells.solve_problems", lambda model, documents, order, **options: [])
    monkeypatch.setattr("peft_study.evaluation.cells.solving_measures", lambda *args, **options: [])
    found = evaluator.correction(make_learner(MethodConfig(name="full")), None, free=False)
    assert set(found.arrays) == {f"correct_id_{KNOWN}", f"correct_ood_{HEADLINE}"}


def test_detection_has_its_cells(
    make_learner: MakeLearner, evaluator: Evaluator, baseline: list[Attempt], told: list[tuple[str, float | None]]
) -> None:
    learner = make_learner(MethodConfig(name="lora", rank=2)).eval()
    found = evaluator.detection(learner, baseline)
    assert told == [("judge injected", 0.0), ("judge own", 0.0), ("judge pairs", 0.0)]
    columns = {(name, column) for name in ("injected", "own", "pairs") for column in ("score", "label", "problem")}
    assert set(found.arrays) == {f"detect_{name}_{HEADLINE}_{column}" for name, column in columns}
    metrics = {measure.metric for measure in found.measures if measure.set == "injected"}
    assert {"detect_auroc", "detect_ece", "detect_balanced_accuracy", "detect_base_rate"} <= metrics
    assert metrics <= METRICS.keys()
    assert "own_mistakes_covered" in {measure.metric for measure in found.measures}
    for name in ("injected", "own", "pairs"):
        lengths = {len(found.arrays[f"detect_{name}_{HEADLINE}_{column}"]) for column in ("score", "label", "problem")}
        assert len(lengths) == 1


def test_problems_do_not_depend_on_the_trial(evaluator: Evaluator) -> None:
    """Training data without mistakes, or with others, is measured on the same problems: comparisons are paired."""
    other = Evaluator(EvaluationConfig(n=N), DataConfig(retry_rate=0.4), mistakes_rate=0.4)
    assert other.problems(HEADLINE) == evaluator.problems(HEADLINE)
    assert other.problems(HEADLINE, rate=0.4) == evaluator.problems(HEADLINE, rate=0.4)
    validation = Evaluator(EvaluationConfig(n=N, split="validation"), DataConfig(), mistakes_rate=0.4)
    assert all(document not in evaluator.problems(HEADLINE) for document in validation.problems(HEADLINE))


def test_base_attempts_are_made_once(
    make_learner: MakeLearner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    evaluator = Evaluator(EvaluationConfig(n=2), DataConfig(), mistakes_rate=0.4)
    monkeypatch.setattr(
        "peft_study.evaluation.problems.generate",
        lambda model, prompts, end_id, **_: generate(model, prompts, end_id=end_id, max_length=260),
    )

    def make_base() -> object:
        made.append(1)
        return make_learner().model

    first = evaluator.base_attempts(make_base, "base", tmp_path / "cache")
    second = evaluator.base_attempts(make_base, "base", tmp_path / "cache")
    assert first == second
    assert made == [1]
    evaluator.base_attempts(make_base, "other base", tmp_path / "cache")
    evaluator.base_attempts(make_base, "base", None)
    assert made == [1, 1, 1]
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".json"] * 2


def test_loss_is_that_of_the_windows(make_learner: MakeLearner, evaluator: Evaluator) -> None:
    validation = WindowStream(StreamSettings(family=NANO, split="validation", retry_rate=0.4)).read(4)
    for name in ("correction", "detection"):
        measure = evaluator.loss(make_learner().eval(), SkillConfig.model_validate({"name": name}), validation)
        assert (measure.set, measure.op, measure.metric, measure.n) == ("stream", None, "loss", 4)
        uniform = np.log(2 if name == "detection" else len(word_ids(NANO)))
        assert measure.value == pytest.approx(uniform, rel=0.05)  # an untrained model knows nothing
