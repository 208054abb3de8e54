"""Pretrained models measured on texts: all numbers worked out by hand on models whose words are known beforehand."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from peft_study.corpora.code import CodeProblem
from peft_study.corpora.config import CorpusConfig
from peft_study.corpora.corpus import Corpus, load_corpus
from peft_study.corpora.records import Segment, SegmentKind, Turn
from peft_study.corpora.synthetic import pairs, settings_of
from peft_study.errors import ConfigError
from peft_study.evaluation.cells import Findings
from peft_study.evaluation.config import NaturalEvaluationConfig
from peft_study.evaluation.natural import loss_measure, natural_findings
from peft_study.evaluation.natural_solving import (
    GRADES,
    Solution,
    chosen,
    correction,
    read_solutions,
    solution_rows,
    solve,
)
from peft_study.models.config import MethodConfig, PretrainedConfig
from peft_study.models.pretrained import PretrainedLearner
from peft_study.records import Grade
from peft_study.skills.config import DataConfig, SkillConfig
from peft_study.skills.encode import Encoded, Encoder
from peft_study.skills.packing import pack
from peft_study.stats import wilson
from peft_study.training.natural import corpus_batch
from tests.evaluation.by_hand import TESTING, corpus_of, document, table, written

CPU = torch.device("cpu")


# ---- solutions

SCRIPT = {
    "p0": "3 + 4 = 7\n#### 7|",
    "p1": "3 + 4 = 8\nNo.\n3 + 4 = 7\n#### 7|",
    "p2": "No.\n#### 7|",
    "p3": "#### 8|",
    "p4": "No.\n#### 9|",
    "p5": "hm|",
    "p6": "la la ",  # without an end
    "p7": "#### 7\nmore ",  # an answer, and then without an end
    "p8": "#### 6|",
}
"""What a model says to each problem; the answer is always 7."""
BASE = {name: "#### 7|" if name in ("p0", "p1", "p3") else "hm|" for name in SCRIPT}


def solved(make_scripted: Callable[..., Any], letters: Any, script: dict[str, str]) -> list[Solution]:
    learner = make_scripted({f"{name}\n": says for name, says in script.items()})
    return solve(learner, corpus_of([document(name) for name in script]), letters, TESTING)


def test_solutions_are_counted_by_hand(make_scripted: Callable[..., Any], letters: Any) -> None:
    solutions = solved(make_scripted, letters, SCRIPT)
    found = correction(solutions, split="test", retraction="No.", grader="gsm8k")
    assert table(found, "id") == {
        "accuracy": (4 / 9, 9),
        "unparsable": (1 / 9, 9),
        "truncated": (1 / 9, 9),
        "retractions": (3 / 9, 9),
    }
    assert found.measures[0][5:7] == wilson(4, 9)
    right = [1, 1, 1, 0, 0, 0, 0, 1, 0]
    assert found.arrays["correct_id_0"].tolist() == right
    assert found.arrays["retracted_id_0"].tolist() == [0, 1, 1, 0, 1, 0, 0, 0, 0]
    assert found.arrays["tokens_id_0"].tolist() == [16, 30, 10, 6, 10, 2, 60, 60, 6]
    assert found.arrays["id_id_0"].tolist() == list(SCRIPT)
    assert [GRADES[grade] for grade in found.arrays["grade_id_0"][4:8]] == [
        Grade.WRONG,
        Grade.UNPARSABLE,
        Grade.TRUNCATED,
        Grade.RIGHT,
    ]
    assert len(found.samples) == 8
    assert found.samples[3] == {
        "set": "id",
        "problem": "p3",
        "solution": "#### 8",
        "finished": True,
        "verdict": "wrong",
        "reason": "the answer is 7, not 8",
    }


def test_a_model_is_compared_with_its_base_on_the_same_problems(
    make_scripted: Callable[..., Any], letters: Any
) -> None:
    """The base solves 0, 1 and 3; the model 0, 1, 2 and 7. It wins 2 with a retraction, and 7 without."""
    ours, theirs = (solved(make_scripted, letters, script) for script in (SCRIPT, BASE))
    options: dict[str, Any] = {"split": "test", "retraction": "No.", "grader": "gsm8k"}
    against = table(correction(ours, baseline=theirs, **options), "id")
    assert against["accuracy_gain"] == (pytest.approx(1 / 9), 9)
    assert against["won_by_retraction"] == (1 / 2, 2)
    assert "won_by_retraction" not in table(correction(ours, baseline=theirs, retracts=False, **options), "id")
    assert "won_by_retraction" not in table(correction(theirs, baseline=theirs, **options), "id")
    options["retraction"] = ""
    without = table(correction(ours, baseline=theirs, **options), "id")
    assert {"retractions", "won_by_retraction"}.isdisjoint(without)
    for other in (theirs[1:], theirs[::-1]):  # another number, another order
        with pytest.raises(ConfigError, match="the same 9 problems in the same order"):
            correction(ours, baseline=other, **options)


def test_solutions_can_be_kept(make_scripted: Callable[..., Any], letters: Any) -> None:
    solutions = solved(make_scripted, letters, SCRIPT)
    rows = json.loads(json.dumps(solution_rows(solutions)))
    corpus = corpus_of([document(name) for name in SCRIPT])
    assert read_solutions(rows, corpus) == solutions
    with pytest.raises(ConfigError, match="are of p0, which is not in the corpus"):
        read_solutions(rows, corpus_of([document("p1")]))


def test_a_part_of_the_problems_is_the_same_part_for_all() -> None:
    few = NaturalEvaluationConfig(n=5)
    assert chosen(5, few) == [0, 1, 2, 3, 4]
    assert chosen(100, few) == chosen(100, few) == sorted(chosen(100, few))
    assert len(set(chosen(100, few))) == 5
    assert chosen(100, few) != chosen(100, NaturalEvaluationConfig(n=5, seed=1))


def test_a_program_begins_where_its_head_ends(make_scripted: Callable[..., Any], letters: Any) -> None:
    """The head's last newline would be one token with what follows, so the model writes it; what is run is whole."""
    head = 'def add(a, b):\n    """Add."""\n'
    exam = "assert candidate(2, 3) == 5"
    problems = [CodeProblem(f"t/{i}", head, "add", "", exam, None) for i in range(2)]
    documents = [document("x")._replace(turns=(Turn("user", (Segment(head, "prompt"),)),))] * 2
    learner = make_scripted({head.rstrip(): "\n    return a + b\n\nprint(1)|"})
    corpus = Corpus([], documents, problems, "humaneval", "", "")
    with pytest.raises(ConfigError, match=r"testing\.allow_untrusted_code is false"):
        solve(learner, corpus, letters, TESTING)
    allowed = TESTING.model_copy(update={"allow_untrusted_code": True})
    solutions = solve(learner, corpus, letters, allowed)
    assert [solution.ok for solution in solutions] == [True, True]
    found = correction(solutions, split="test", retraction="", grader="humaneval")
    assert table(found, "id") == {
        "accuracy": (1.0, 2),
        "unparsable": (0.0, 2),
        "truncated": (0.0, 2),
        "timed_out": (0.0, 2),
        "crashed": (0.0, 2),
    }


def test_the_synthetic_world_has_the_measures_of_its_own_verifier(
    make_scripted: Callable[..., Any], letters: Any
) -> None:
    drawn = pairs(settings_of(DataConfig(retry_rate=0.6), "validation", 0), 3)
    answers = [pair.document.turns[1].text for pair in drawn]
    answers[2] = answers[2].partition("[ANSWER]")[0] + "[ANSWER] 99"
    script = {pair.document.turns[0].text: f"{text}|" for pair, text in zip(drawn, answers, strict=True)}
    corpus = Corpus([], [pair.document for pair in drawn], [pair.problem for pair in drawn], "igsm", "", "")
    testing = NaturalEvaluationConfig(max_new_tokens=2000)
    found = correction(
        solve(make_scripted(script), corpus, letters, testing), split="test", retraction="[BACK]", grader="igsm"
    )
    back = [text.count("[BACK]") for text in answers]
    assert min(back[:2]) > 0
    solved = table(found, "id")
    assert solved["accuracy"] == (2 / 3, 3)
    assert solved["accuracy_published"] == (2 / 3, 3)
    assert solved["retries_right"] == (sum(back[:2]) / 2, 2)
    assert solved["retries_wrong"] == (back[2], 1)
    assert solved["unnecessary_steps"] == (0, 2)
    assert len(found.measures) == len(solved)
    assert found.departures == {"id_0": {"right": 2, "answer": 1}}


# ---- the loss, and all of it


def test_the_loss_is_a_mean_over_positions(make_scripted: Callable[..., Any]) -> None:
    """The next letter is the present one with odds of 3 to 255."""
    same, other = math.log(258 / 3), math.log(258)
    texts = [("aab", [False, True, True]), ("cc", [False, True]), ("ee", [False, False])]
    encoded = [
        Encoded(np.array(list(map(ord, text)), np.int32), np.array(learned), np.full(len(text), -1, np.int8), False)
        for text, learned in texts
    ]
    batches = [corpus_batch(pack([one], 4, 0, False), CPU, verdict=False) for one in encoded]
    learner = make_scripted({})
    loss = loss_measure(learner, batches)
    assert loss[:4] == ("validation", "stream", None, "loss")
    assert loss.value == pytest.approx((2 * same + other) / 3)
    assert (loss.low, loss.high, loss.n) == (pytest.approx(same), pytest.approx((same + other) / 2), 2)
    assert learner.training
    with pytest.raises(ConfigError, match="no window of the validation documents has loss"):
        loss_measure(learner, batches[2:])


def test_each_skill_has_its_measures(make_scripted: Callable[..., Any], letters: Any) -> None:
    steps: list[tuple[str, SegmentKind]] = [("a8", "mistake"), ("No.", "retraction"), ("b2", "step")]
    corpus = corpus_of([document(f"d{i}", *steps) for i in range(5)])
    learner = make_scripted({f"d{i}\n": "No.\n#### 7|" for i in range(5)})
    base = [written(each.id, "hm", Grade.UNPARSABLE) for each in corpus.validation]

    told: list[str] = []

    def measured(skill: str, made: Corpus = corpus, **config: Any) -> dict[str, tuple[float, int]]:
        found = natural_findings(
            learner,
            SkillConfig.model_validate({"name": skill}),
            CorpusConfig.model_validate({"name": "own.jsonl", "retraction": "No."} | config),
            TESTING,
            corpus=made,
            encoder=letters,
            baseline=base,
            on_phase=lambda phase, _: told.append(phase),
        )
        return {measure.metric: (measure.value, measure.n) for measure in found.measures}

    assert measured("detection").keys() >= {"detect_auroc", "detect_ece"}
    assert list(dict.fromkeys(told)) == ["choose a threshold", "judge injected"]
    told.clear()
    solved = measured("correction", mistakes="number")
    assert (solved["accuracy"], solved["won_by_retraction"]) == ((1.0, 5), (1.0, 5))
    assert set(told) == {"solve"}
    assert "won_by_retraction" not in measured("correction")
    assert "won_by_retraction" not in measured("correction", mistakes="number", retry_rate=0)
    assert measured("correction", corpus._replace(problems=[], grader="")) == {}


TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}<|end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize("template", ["", TEMPLATE], ids=["plain", "chat"])
def test_a_base_is_measured_before_training(checkpoint: Callable[[str], Path], tmp_path: Path, template: str) -> None:
    """On both skills, from a file to measures, and the same whatever is done at once."""
    rows = [
        {
            "question": f"Tom has {i} apples and buys 4 more. How many?",
            "solution": f"{i} + 4 = {i + 4} apples.\nSo {i + 4}.",
        }
        | {"answer": i + 4}
        for i in range(60)
    ]
    file = tmp_path / "apples.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = CorpusConfig(name=str(file), validation_share=0.4, mistakes="number", retry_rate=0.5, window=100)
    corpus = load_corpus(config, DataConfig(), 0)
    learner = PretrainedLearner(
        PretrainedConfig(name=str(checkpoint("qwen3")), dtype="float32"), MethodConfig(name="none"), 0
    )
    learner.tokenizer.chat_template = template or None
    learner.train()
    found: dict[str, list[Findings]] = {"correction": [], "detection": []}
    for name, each in found.items():
        skill = SkillConfig.model_validate({"name": name})
        encoder = Encoder(learner.tokenizer, skill, config)
        windows = pack(encoder.encode_all(corpus.validation).encoded, 100, learner.pad_id, True)
        batches = [corpus_batch(windows, CPU, verdict=name == "detection")]
        for batch in (1, 8):
            testing = NaturalEvaluationConfig(split="validation", max_new_tokens=20, batch=batch)
            each.append(
                natural_findings(learner, skill, config, testing, corpus=corpus, encoder=encoder, batches=batches)
            )
        first, second = each
        assert [m[:4] for m in first.measures] == [m[:4] for m in second.measures]
        for mine, other in zip(first.measures, second.measures, strict=True):
            assert mine[4:] == pytest.approx(other[4:], abs=1e-4)
        assert first.samples == second.samples
        assert first.measures[0].metric == "loss"
    solved, judged = found["correction"][0], found["detection"][0]
    assert {"accuracy", "retractions"} <= {measure.metric for measure in solved.measures}
    assert len(solved.arrays["correct_id_0"]) == len(corpus.validation) > 10
    assert {"detect_auroc", "detect_ece", "detect_base_rate"} <= {measure.metric for measure in judged.measures}
    shown = solved.samples[0]
    assert shown["problem"].startswith("Tom has")
    assert shown["verdict"] in {grade.value for grade in Grade}
    assert learner.training
