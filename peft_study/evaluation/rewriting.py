"""Opens the model that writes mistakes: behind a server, or loaded here."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from peft_study.corpora.chat import RewriterConfig
from peft_study.corpora.rewriter import ModelRewriter, server_rewriter
from peft_study.corpora.steps import Form
from peft_study.evaluation.config import NaturalEvaluationConfig
from peft_study.evaluation.writing import write
from peft_study.models.config import PretrainedConfig
from peft_study.models.device import this_device
from peft_study.models.hub import load_pretrained, load_tokenizer


def open_rewriter(config: RewriterConfig, form: Form) -> ModelRewriter:
    """Return a rewriter of solutions of a `form`; a local model is loaded with the first answer that is not kept."""
    answers = Path(config.answers)
    if config.local:
        return ModelRewriter(config.label, local_model(config), form, answers)
    return server_rewriter(config, form, answers)


def local_model(config: RewriterConfig) -> Callable[[str, int], str]:
    """Return what answers a prompt with a seed; an answer that was cut off is empty, as a server's."""
    chosen = PretrainedConfig(name=config.model)

    @cache
    def loaded() -> tuple[Any, Any]:
        model: Any = load_pretrained(chosen)
        return model.to(this_device()), load_tokenizer(chosen)

    def ask(text: str, seed: int) -> str:
        model, tokenizer = loaded()
        if tokenizer.chat_template:
            turns = [{"role": "user", "content": text}]
            text = tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        ids = tokenizer(text, add_special_tokens=not tokenizer.chat_template)["input_ids"]
        options = NaturalEvaluationConfig(
            seed=seed, temperature=config.temperature, max_new_tokens=config.max_tokens, batch=1
        )
        (answer,) = write(model, tokenizer, [ids], options)
        return answer.text if answer.finished else ""

    return ask
