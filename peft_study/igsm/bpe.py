"""GPT-2's tokenizer with the marks of the paper, for those who have it: on the Hub or in a local folder.

A document is `[222] problem [223] solution [224] answer [50256]` (Part 2.2, section 2, and the published code): the ids
222 to 224 are bytes that plain ASCII text never has, 50256 is <|endoftext|>. A retraction is ` BACK`.
"""

from functools import cache
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from peft_study.errors import CheckpointError
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.stream import Document, Tokens, WindowStream, draw_document
from peft_study.igsm.text import ANSWER, BACK, END, LEANING_SIGNS, PROBLEM, SOLUTION, document_words

MARKS = {PROBLEM: 222, SOLUTION: 223, ANSWER: 224}
_ASCII = "".join(map(chr, range(32, 127)))


def load_gpt2(name: str | Path = "openai-community/gpt2") -> PreTrainedTokenizerBase:
    """Return GPT-2's tokenizer from the Hub or a folder; raise CheckpointError where it is not there or another one."""
    remedy = "give the name or the folder of a GPT-2 tokenizer"
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name} holds no tokenizer ({str(error).splitlines()[0]}); {remedy}") from error
    used = set(tokenizer(_ASCII + " " + " ".join(_ASCII), add_special_tokens=False)["input_ids"])
    if tokenizer.eos_token_id is None or len(tokenizer) < 257 or used & set(MARKS.values()):
        raise CheckpointError(
            f"the tokenizer {name} must be byte-level, with an end mark and with ids {min(MARKS.values())} to "
            f"{max(MARKS.values())} for bytes that ASCII has not, but is not; {remedy}"
        )
    return tokenizer


class BpeStream(WindowStream):
    """Packed windows of a stream in GPT-2's tokens, with the kind of each token as the word's it is part of."""

    def __init__(
        self,
        settings: StreamSettings,
        tokenizer: PreTrainedTokenizerBase,
        *,
        length: int | None = None,
        next_index: int = 0,
        packed: bool = True,
    ) -> None:
        super().__init__(settings, length=length, next_index=next_index, packed=packed)
        self.tokenizer = tokenizer
        assert isinstance(tokenizer.eos_token_id, int)
        # GPT-2 has no padding; behind an end mark nothing is read.
        self.end_id = self.pad_id = tokenizer.eos_token_id
        self._word = cache(self._encode)

    def _encode(self, text: str) -> list[int]:
        if text in MARKS:
            return [MARKS[text]]
        if text == END:
            return [self.end_id]
        word = "BACK" if text == BACK else text
        return self.tokenizer(word if text in LEANING_SIGNS else " " + word, add_special_tokens=False)["input_ids"]

    def document(self, document: Document) -> Tokens:
        """Return `document` as token ids and kinds, both of shape [length].

        Words are encoded one by one: GPT-2 splits text at spaces and signs before it merges anything, so the tokens are
        those of the whole text.
        """
        words = document_words(document.problem, document.solution, document.mistakes, self.settings.order)
        pieces = [(self._word(word.text), int(word.kind)) for word in words]
        return Tokens(
            np.array([token for ids, _ in pieces for token in ids], np.uint16),
            np.array([kind for ids, kind in pieces for _ in ids], np.uint8),
        )

    def _document(self, index: int) -> Tokens:
        return self.document(draw_document(self.settings, index))
