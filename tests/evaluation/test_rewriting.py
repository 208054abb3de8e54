"""A local model that writes mistakes: loaded when it is first asked, by its chat template, sampled by the seed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peft_study.corpora import gsm8k
from peft_study.corpora.chat import RewriterConfig
from peft_study.corpora.records import Problem
from peft_study.errors import CheckpointError
from peft_study.evaluation import rewriting
from peft_study.evaluation.rewriting import local_model, open_rewriter
from peft_study.evaluation.writing import Written

CLIPS = Problem("a/0", "Of 48 friends, half came. How many?", "So 48/2 = 24 came.\n#### 24", "24")
STEPS = ["So 48/2 = 24 came.", "#### 24"]


def test_a_local_model_is_asked_once_and_its_answers_are_kept(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int, float]] = []

    def write(_model: Any, tokenizer: Any, prompts: Any, options: Any) -> list[Written]:
        asked.append((tokenizer.decode(prompts[0]), options.seed, options.temperature))
        return [Written("So 48*2 = 96 came.", len(asked) > 1, 7)]

    monkeypatch.setattr(rewriting, "write", write)
    config = RewriterConfig(model=str(checkpoint("llama")), local=True, answers=str(tmp_path / "a.jsonl"))
    rewriter = open_rewriter(config, gsm8k.FORM)
    # The first answer was cut off.
    assert rewriter.rewrite(CLIPS, STEPS, 0, 7) == "So 48*2 = 96 came."
    assert rewriter.counts == {"asked": 2, "empty": 1, "written": 1}
    assert CLIPS.question in asked[0][0]
    assert asked[0][1] != asked[1][1]
    assert asked[0][2] == 1.0
    again = open_rewriter(config.model_copy(update={"threads": 1}), gsm8k.FORM)
    assert again.rewrite(CLIPS, STEPS, 0, 7) == "So 48*2 = 96 came."
    assert len(asked) == 2


def test_a_model_answers_by_its_seed(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    config = RewriterConfig(model=str(checkpoint("llama")), local=True, answers="a.jsonl", max_tokens=200)
    found = [local_model(config)("Tom has 3", seed) for seed in (1, 1, *range(2, 10))]
    assert found[0] == found[1]
    assert len(set(found)) > 1
    with pytest.raises(CheckpointError, match="no such folder"):
        local_model(config.model_copy(update={"model": str(tmp_path / "none")}))("Tom", 0)
