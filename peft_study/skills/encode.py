r"""Documents as tokens of any tokenizer, and what of each is learned.

A document is written as one text and tokenised whole, as a model will write it; characters say what a token is. A
token may reach over the end of a segment, as `.\n` does in many tokenizers, so:

- a token has loss only if all of its characters are learned: none of a prompt's, none of a masked mistake's;
- a verdict stands at the last token of its segment that would be there whatever followed: the tokens up to it are
  those of a text that ends with the segment, and of one that goes on in a new line. So it stands before the dot of all
  steps or of none, also of the last. Where the segment has no such token, there is none.

Without a chat template a document is its turns one after another, with the tokenizer's own beginning and an end mark
behind everything the assistant says. With one, it is what the template makes of it: what has loss is from the end of
the prompt that a model is given (which may be before the first word: `<think>`) to the mark that ends the turn.
"""

from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from peft_study.corpora.config import CorpusConfig
from peft_study.corpora.records import Document, SegmentKind, Turn
from peft_study.errors import ConfigError, DataError
from peft_study.skills.config import SkillConfig
from peft_study.skills.targets import NOT_A_DECISION, RIGHT, WRONG

LABELS: dict[SegmentKind, int] = {"step": RIGHT, "detour": RIGHT, "mistake": WRONG}
"""What is judged at the end of a segment."""
MASKED: tuple[SegmentKind, ...] = ("mistake", "detour")
"""What has no loss where mistakes are masked."""
_MARK = "\ue000\ue001\ue000"
"""Stands for what someone says, to see where a template puts it."""
_MARKED = {"role": "assistant", "content": _MARK}


class Encoded(NamedTuple):
    """A document of L tokens."""

    ids: NDArray[np.int32]
    """[L]."""
    learned: NDArray[np.bool_]
    """[L]: token i has loss for correction, predicted from those before it; never the first."""
    verdicts: NDArray[np.int8]
    """[L]: RIGHT or WRONG at the last token of a judged segment, else NOT_A_DECISION."""
    truncated: bool
    """Whether its end was cut off."""


class EncodedCorpus(NamedTuple):
    """Documents, and what became of them."""

    encoded: list[Encoded]
    documents: int
    """How many there were."""
    truncated: int
    """How many of `encoded` are cut off at the end of the window."""
    left_out: int
    """How many are not in `encoded`, since nothing that they answer is in the window."""


class _Text(NamedTuple):
    """A document as one text of C characters."""

    text: str
    answered: NDArray[np.bool_]
    """[C]: what the assistant says, and the mark that ends it."""
    segments: list[tuple[int, int, SegmentKind]]
    """Where each segment of the assistant begins and ends, and what it is."""


class Encoder:
    """Makes tokens of documents; one for all of a trial's."""

    def __init__(self, tokenizer: Any, skill: SkillConfig, corpus: CorpusConfig) -> None:
        """Make one for a fast tokenizer of `transformers`; ConfigError where it or the skill will not do."""
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        if not getattr(tokenizer, "is_fast", False):
            raise ConfigError(
                f"the tokenizer {name} must say where tokens stand in a text, but is slow; take a fast one"
            )
        if not tokenizer.eos_token:
            raise ConfigError(f"the tokenizer {name} must have an end mark, but its eos_token is empty; set one")
        if corpus.chat_template is True and not tokenizer.chat_template:
            raise ConfigError(f"chat_template is true, but the tokenizer {name} has none; set it to auto")
        if skill.mask and skill.mask_part == "name":
            raise ConfigError("mask_part must be step for texts, whose mistakes have no name, but is 'name'")
        if skill.problem_weight:
            raise ConfigError(f"problem_weight must be 0 for texts, but is {skill.problem_weight}; set loss=all")
        self.tokenizer = tokenizer
        self.corpus = corpus
        self.masked = MASKED if skill.mask else ()
        self.templated = bool(corpus.chat_template and tokenizer.chat_template)
        self.swallowing = [i for i, token in tokenizer.added_tokens_decoder.items() if token.rstrip]
        """Tokens that have the white space behind them, as marks of Phi 3."""

    def encode(self, document: Document) -> Encoded:
        """Return a document's tokens, up to the end of a window; DataError where the template will not have it."""
        return self._encode(document)[0]

    def takes(self, document: Document) -> bool:
        """Return whether the chat template will have a document; what a model writes may hold marks of the template."""
        try:
            self._encode(document)
        except DataError:
            return False
        return True

    def encode_all(self, documents: Iterable[Document]) -> EncodedCorpus:
        """Return all documents but those of which the window holds nothing to learn.

        A mistake counts as something, masked or not, so that all skills and masks read the same tokens.
        """
        found = [self._encode(document) for document in documents]
        encoded = [document for document, is_learned in found if is_learned]
        truncated = sum(document.truncated for document in encoded)
        return EncodedCorpus(encoded, len(found), truncated, len(found) - len(encoded))

    def prompt(self, document: Document) -> list[int]:
        """Return the tokens of what stands before the first answer: what a model is given to go on from."""
        before = list(takewhile(lambda turn: turn.role != "assistant", document.turns))
        if self._is_chat(document):
            messages = [{"role": turn.role, "content": _content(turn)[0]} for turn in before]
            written = self._rendered(document, [*messages, _MARKED]).partition(_MARK)[0]
            return self._tokens(self._opening(document, messages, written), special=False)[0].tolist()
        return self._tokens("".join(turn.text for turn in before), special=True)[0].tolist()

    def _encode(self, document: Document) -> tuple[Encoded, bool]:
        """Return a document's tokens, and whether anything in the window is learned, or would be without the mask."""
        is_chat = self._is_chat(document)
        text, answered_C, segments = self._chat(document) if is_chat else self._plain(document)
        ids, starts, ends = self._tokens(text, special=not is_chat)
        if self.corpus.loss == "all":
            answered_C[:] = True
        learned_C = answered_C.copy()
        for start, end, kind in segments:
            if kind in self.masked:
                learned_C[start:end] = False
        verdicts = np.full(len(ids), NOT_A_DECISION, np.int8)
        judged = [segment for segment in segments if segment[2] in LABELS]
        lasts = self._lasts(text, ids, [end for _, end, _ in judged], special=not is_chat)
        for (start, end, kind), known in zip(judged, lasts, strict=True):
            last = min(known, int(np.searchsorted(ends, end, side="right")) - 1)
            body = end - len(text[start:end].lstrip())
            if last >= 0 and ends[last] > body:
                verdicts[last] = LABELS[kind]
        window = self.corpus.window
        learned = _inside(learned_C, starts, ends)[:window]
        is_learned = bool(_inside(answered_C, starts, ends)[:window].any())
        return Encoded(ids[:window], learned, verdicts[:window], len(ids) > window), is_learned

    def _is_chat(self, document: Document) -> bool:
        # A text that answers nobody is no conversation.
        return self.templated and any(turn.role != "assistant" for turn in document.turns)

    def _tokens(self, text: str, *, special: bool) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
        """Return the ids of a text and where each token starts and ends in it, all [L]."""
        found = self.tokenizer(
            text,
            add_special_tokens=special,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_attention_mask=False,
            verbose=False,
        )
        added = np.array(found["special_tokens_mask"], bool)
        count = len(added)
        # The end mark is written where it belongs; one that the tokenizer puts behind everything would be a second.
        while count > 1 and added[count - 1]:
            count -= 1
        ids = np.array(found["input_ids"], np.int32)[:count]
        starts, ends = np.array(found["offset_mapping"], np.int64).reshape(-1, 2)[:count].T
        # Some tokenizers do not count the spaces that a token begins with; of spaces alone, nothing is left.
        before = np.concatenate([[0], ends])[:count]
        starts = np.where((starts == ends) & ~added[:count], np.minimum(before, starts), starts)
        for i in np.flatnonzero(np.isin(ids, self.swallowing)):
            ends[i] = starts[i] + len(text[starts[i] : ends[i]].rstrip())
        return ids, starts, ends

    def _lasts(self, text: str, ids: NDArray[np.int32], places: list[int], *, special: bool) -> list[int]:
        """Return for each place in a text the last token that does not depend on what follows it; -1 for none."""
        if not places:
            return []
        texts = [text[:place] + more for place in places for more in ("", "\n")]
        alone = self.tokenizer(texts, add_special_tokens=special, return_attention_mask=False, verbose=False)
        common = [_common(ids, np.array(tokens, np.int32)) for tokens in alone["input_ids"]]
        return [min(pair) - 1 for pair in zip(common[::2], common[1::2], strict=True)]

    # ---- a document as one text

    def _plain(self, document: Document) -> _Text:
        parts, answered, segments, place = [], [], [], 0
        for turn in document.turns:
            for text, kind in turn.segments:
                parts.append(text)
                answered.append(np.full(len(text), turn.role == "assistant" and kind != "prompt"))
                segments.append((place, place + len(text.rstrip()), kind))
                place += len(text)
            end = self.tokenizer.eos_token
            if turn.role == "assistant" and not turn.text.endswith(end):
                parts.append(end)
                answered.append(np.ones(len(end), bool))
                place += len(end)
        return _Text("".join(parts), np.concatenate([np.zeros(0, bool), *answered]), segments)

    def _chat(self, document: Document) -> _Text:
        """Return a conversation as the template writes it.

        Where the template puts what someone says is seen by a mark in its place.
        """
        turns = document.turns
        contents = [_content(turn) for turn in turns]
        messages = [{"role": turn.role, "content": said} for turn, (said, _) in zip(turns, contents, strict=True)]
        full = self._rendered(document, messages)
        answered, segments = np.zeros(len(full), bool), []
        for i, (turn, (said, lead)) in enumerate(zip(turns, contents, strict=True)):
            if turn.role != "assistant":
                continue
            before, _, behind = self._rendered(document, [*messages[:i], _MARKED, *messages[i + 1 :]]).partition(_MARK)
            if full != before + said + behind:
                # Some take white space away.
                lead, said = lead + len(said) - len(said.lstrip()), said.strip()
            if full != before + said + behind:
                raise DataError(
                    f"{document.id}, turn {i + 1}: the chat template changes what the assistant says "
                    f"({said[:40]!r}); set chat_template=false"
                )
            start = len(before)
            end = start + len(said)
            last = i == len(turns) - 1
            ended = behind if last else self._rendered(document, [*messages[:i], _MARKED]).partition(_MARK)[2]
            close = "".join(a for a, b in takewhile(lambda pair: pair[0] == pair[1], zip(behind, ended, strict=False)))
            close = close.rstrip()
            if last and not close:
                # The template ends no turn, but a model has to.
                full, close = full[:end] + self.tokenizer.eos_token, self.tokenizer.eos_token
                answered = np.resize(answered, len(full))
            answered[len(self._opening(document, messages[:i], before)) : end + len(close)] = True
            place = start - lead
            for text, kind in turn.segments:
                piece = slice(max(start, place), min(end, place + len(text)))
                segments.append((piece.start, min(end, place + len(text.rstrip())), kind))
                if kind == "prompt":
                    answered[piece] = False
                place += len(text)
        return _Text(full, answered, segments)

    def _opening(self, document: Document, before: list[dict[str, str]], written: str) -> str:
        """Return the prompt that a model is given for a turn, in front of whose first word a document has `written`.

        It is the template's own, if a document begins with its tokens, else `written`: some templates have no prompt
        for the assistant, and those of models that cannot but think open a thought, which no document has.
        """
        if not before:
            return written
        given = self._rendered(document, before, prompt=True)
        if given == written or not written.startswith(given):
            return written
        is_prompt = given != self._rendered(document, before) or not written[len(given) :].strip()
        ids, of_document = (self._tokens(text, special=False)[0] for text in (given, written))
        return given if is_prompt and _common(ids, of_document) == len(ids) else written

    def _rendered(self, document: Document, messages: Sequence[dict[str, str]], *, prompt: bool = False) -> str:
        from jinja2.exceptions import TemplateError  # for those who have a template

        try:
            # Templates of models that can think aloud first would else have them do so; others do not read it.
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=prompt, enable_thinking=False
            )
        except TemplateError as error:
            raise DataError(
                f"{document.id}: the chat template refuses its turns ({error}); change them, or set chat_template=false"
            ) from None


def _content(turn: Turn) -> tuple[str, int]:
    """Return what someone says in a conversation, and where that begins in the turn's text.

    The newlines and the space that part it from other texts are left out, but not an indentation.
    """
    text = turn.text.rstrip()
    said = text.lstrip("\r\n")
    if turn.role != "assistant" or not said.startswith("  "):
        said = said.lstrip()
    return said, len(text) - len(said)


def _common(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """Return how many tokens two lists begin with in common."""
    count = min(len(a), len(b))
    other = np.flatnonzero(a[:count] != b[:count])
    return int(other[0]) if len(other) else count


def _inside(of_C: NDArray[np.bool_], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which tokens, but the first, have all of their characters in `of_C`, and any."""
    before = np.concatenate([[0], np.cumsum(of_C)])
    inside = (before[ends] - before[starts] == ends - starts) & (ends > starts)
    inside[:1] = False
    return inside
