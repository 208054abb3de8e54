"""Models whose words are known beforehand, and tiny ones of transformers."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_study.corpora.records import Document
from peft_study.skills.encode import LABELS, Encoded
from peft_study.skills.targets import NOT_A_DECISION


@pytest.fixture
def load_tiny(checkpoint: Callable[[str], Path]) -> Callable[[str], tuple[Any, Any]]:
    """Return a function that loads a tiny model of an architecture and its tokenizer."""

    def load(kind: str) -> tuple[Any, Any]:
        folder = checkpoint(kind)
        return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    return load


class LetterTokenizer:
    """A token for each letter; 0 ends a text."""

    eos_token_id = 0
    chat_template = None
    padding_side = "right"

    def decode(self, ids: list[int], **_options: Any) -> str:
        return "".join(map(chr, ids))


class LetterEncoder:
    """Makes documents letters."""

    templated = False

    def encode(self, document: Document) -> Encoded:
        ids, learned, verdicts = [], [], []
        for turn in document.turns:
            for text, kind in turn.segments:
                ids += map(ord, text)
                learned += [turn.role == "assistant"] * len(text)
                verdicts += [NOT_A_DECISION] * (len(text) - 1) + [LABELS.get(kind, NOT_A_DECISION)]
        return Encoded(np.array(ids, np.int32), np.array(learned, bool), np.array(verdicts, np.int8), False)

    def takes(self, document: Document) -> bool:
        return True

    def prompt(self, document: Document) -> list[int]:
        return list(map(ord, document.turns[0].text))


class ScriptedModel(nn.Module):
    """Writes what its script has for a prompt; where that does not end with `|`, it knows no end and says it again."""

    def __init__(self, script: Mapping[str, str]) -> None:
        super().__init__()
        self.script = script
        self.config = SimpleNamespace(eos_token_id=None, get_text_config=lambda: SimpleNamespace())
        self.generation_config = None
        self.device = torch.device("cpu")

    def generate(self, ids_BT: Tensor, *, attention_mask: Tensor, generation_config: Any) -> Tensor:
        assert not self.training
        assert generation_config.eos_token_id == [0]
        rows = []
        for ids_T, mask_T in zip(ids_BT, attention_mask, strict=True):
            says = self.script["".join(map(chr, ids_T[mask_T.bool()].tolist()))]
            most, pad = generation_config.max_new_tokens, chr(generation_config.pad_token_id)
            text = (says.removesuffix("|") + pad if says.endswith("|") else says * most)[:most]
            rows.append([ord(letter) for letter in text.ljust(most, pad)])
        return torch.cat([ids_BT, torch.tensor(rows)], 1)


class ScriptedLearner(nn.Module):
    """Writes by a script, and judges a step by its last letter: the margin of wrong over right is that digit less 5."""

    def __init__(self, script: Mapping[str, str]) -> None:
        super().__init__()
        self.model, self.tokenizer = ScriptedModel(script), LetterTokenizer()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, ids_BT: Tensor, where_BT: Tensor, *, verdict: bool, positions_BT: Tensor | None = None) -> Tensor:
        assert not torch.is_grad_enabled()
        if not verdict:
            # Sure that the next letter is the present one, three to one against each other letter.
            return torch.nn.functional.one_hot(ids_BT[where_BT], 256).float() * math.log(3) + self.weight
        margin = (ids_BT[where_BT] - ord("5")).float()
        return torch.stack([torch.zeros_like(margin), margin], 1)


@pytest.fixture(scope="session")
def letters() -> Any:
    """Return an encoder to letters."""
    return LetterEncoder()


@pytest.fixture(scope="session")
def make_scripted() -> Callable[[Mapping[str, str]], Any]:
    """Return the maker of learners whose words are known beforehand."""
    return ScriptedLearner
