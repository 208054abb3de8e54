"""Documents in tokens: what is learned and judged, worked by hand, with and without chat templates."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peft_study.corpora import synthetic
from peft_study.corpora.config import CorpusConfig
from peft_study.corpora.records import Document, Segment, SegmentKind, Turn
from peft_study.errors import ConfigError, DataError
from peft_study.igsm.families import NANO
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.stream import WindowStream
from peft_study.igsm.text import END
from peft_study.igsm.tokenizer import build_tokenizer, word_ids
from peft_study.skills.config import SkillConfig
from peft_study.skills.encode import Encoded, Encoder
from peft_study.skills.targets import NOT_A_DECISION, RIGHT, WRONG, correction_targets, decision_labels

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BEGUN = "{{ bos_token }}" + CHATML
"""Writes the beginning itself, as Llama's does."""
TRIMMED = CHATML.replace("m.content", "m.content | trim")
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + CHATML
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content.split('</think>')[-1].lstrip() }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Qwen3's: the last turn of the assistant begins with an empty thought, and thoughts of others are taken out."""
MUST_THINK = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
"""As Qwen3-Thinking's: the prompt opens a thought, and the two newlines of an empty one are another token."""
OPENS_THOUGHT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
"""As DeepSeek-R1's: the prompt opens a thought that is not written in a conversation."""
INST = (
    "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content | trim }}</s>{% endif %}{% endfor %}"
)
"""As Llama 2's and Mistral's: the space before an answer is the template's, and a part of the answer's first token."""
MARKS = (
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>\n{{ m.content }}<|end|>\n<|assistant|>\n"
    "{% else %}{{ m.content }}<|end|>\n{% endif %}{% endfor %}"
)
"""As that of Phi-3-medium, whose marks have the white space behind them."""
NO_END = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
"""Ends no turn, and has no prompt for the assistant."""


def turn(role: str, *segments: tuple[str, SegmentKind]) -> Turn:
    return Turn(role, tuple(Segment(text, kind) for text, kind in segments))  # pyright: ignore[reportArgumentType]


STEPS = Document(
    "steps",
    (
        turn("user", ("How many?\n", "prompt")),
        turn(
            "assistant",
            ("3 + 4 = 7 it is.", "step"),
            ("\nthe end.", "mistake"),
            ("\nWait, that last step is wrong.", "retraction"),
            ("\n#### 7", "step"),
        ),
    ),
)
TALK = Document(
    "talk",
    (
        turn("system", ("Be an assistant.\n", "prompt")),
        turn("user", ("user\n", "prompt")),
        turn("assistant", ("assistant", "text")),
        turn("user", ("How many are left?\n", "prompt")),
        turn("assistant", ("3 left", "text")),
    ),
)
WITHOUT_SYSTEM = TALK._replace(turns=TALK.turns[1:])


def encoder(tokenizer: Any, skill: dict[str, Any] | None = None, **corpus: Any) -> Encoder:
    return Encoder(tokenizer, SkillConfig.model_validate(skill or {}), CorpusConfig.model_validate(corpus))


def pieces(tokenizer: Any, encoded: Encoded) -> list[str]:
    return [tokenizer.decode([token]) for token in encoded.ids.tolist()]


def learned(tokenizer: Any, encoded: Encoded) -> str:
    """Return what has loss, with a bar where something before it has none."""
    shown, before = "", False
    for piece, has_loss in zip(pieces(tokenizer, encoded), encoded.learned.tolist(), strict=True):
        shown += ("" if before else "|") * has_loss + piece * has_loss
        before = has_loss
    return shown


def judged(tokenizer: Any, encoded: Encoded) -> list[tuple[str, int]]:
    at = zip(pieces(tokenizer, encoded), encoded.verdicts.tolist(), strict=True)
    return [(piece, verdict) for piece, verdict in at if verdict != NOT_A_DECISION]


# ---- without a chat template


@pytest.mark.parametrize("trim", [False, True])
def test_a_solution_is_learned_but_for_its_mistakes(bpe: Callable[..., Any], trim: bool) -> None:
    tokenizer = bpe(trim=trim)
    encoded = encoder(tokenizer).encode(STEPS)
    assert pieces(tokenizer, encoded)[:4] == ["How", " many", "?\n", "3"]
    assert "".join(pieces(tokenizer, encoded)) == (
        "How many?\n3 + 4 = 7 it is.\nthe end.\nWait, that last step is wrong.\n#### 7</s>"
    )
    # `.` and the newline of the mistake are one token.
    assert learned(tokenizer, encoded) == "|3 + 4 = 7 it is|Wait, that last step is wrong.\n#### 7</s>"
    unmasked = encoder(tokenizer, {"mask": False}).encode(STEPS)
    assert learned(tokenizer, unmasked) == ("|3 + 4 = 7 it is.\nthe end.\nWait, that last step is wrong.\n#### 7</s>")
    assert np.array_equal(unmasked.ids, encoded.ids)
    assert np.array_equal(unmasked.verdicts, encoded.verdicts)


@pytest.mark.parametrize("eos", [False, True])
@pytest.mark.parametrize("trim", [False, True])
def test_a_verdict_stands_at_the_last_token_of_its_segment(bpe: Callable[..., Any], trim: bool, eos: bool) -> None:
    tokenizer = bpe(trim=trim, eos=eos)
    found = judged(tokenizer, encoder(tokenizer, {"name": "detection"}).encode(STEPS))
    # The dot is one token with the newline behind it.
    assert found == [(" is", RIGHT), (" end", WRONG), ("7", RIGHT)]


@pytest.mark.parametrize("template", ["", CHATML])
@pytest.mark.parametrize("kind", ["step", "mistake"])
def test_the_last_step_is_judged_where_all_others_are(
    bpe: Callable[..., Any], template: str, kind: SegmentKind
) -> None:
    """A dot with a newline behind it is another token than a dot: a detector could tell the last step by that alone."""
    tokenizer = bpe(template=template)
    said = turn("assistant", ("3 + 4 = 7 it is.", "step"), ("\nthe end.", kind))
    encoded = encoder(tokenizer, {"name": "detection"}).encode(Document("a", (STEPS.turns[0], said)))
    assert judged(tokenizer, encoded) == [(" is", RIGHT), (" end", {"step": RIGHT, "mistake": WRONG}[kind])]


def test_all_has_loss_but_mistakes_and_the_first_token(bpe: Callable[..., Any]) -> None:
    tokenizer = bpe()
    every = encoder(tokenizer, {"mask": False}, loss="all").encode(STEPS)
    assert every.learned.tolist() == [False] + [True] * (len(every.ids) - 1)
    masked = encoder(tokenizer, loss="all").encode(STEPS)
    assert learned(tokenizer, masked) == ("| many?\n3 + 4 = 7 it is|Wait, that last step is wrong.\n#### 7</s>")


@pytest.mark.parametrize(("bos", "eos"), [(False, False), (True, False), (True, True)])
def test_there_is_one_beginning_and_one_end(bpe: Callable[..., Any], bos: bool, eos: bool) -> None:
    tokenizer = bpe(bos=bos, eos=eos)
    encoded = encoder(tokenizer).encode(STEPS)
    assert encoded.ids.tolist().count(tokenizer.bos_token_id) == bos
    assert (encoded.ids[0] == tokenizer.bos_token_id) == bos
    assert encoded.ids.tolist().count(tokenizer.eos_token_id) == 1
    assert encoded.ids[-1] == tokenizer.eos_token_id
    assert encoded.learned[-1]
    assert not encoded.learned[0]


def test_a_text_is_learned_whole_and_never_in_a_template(bpe: Callable[..., Any]) -> None:
    tokenizer = bpe(bos=True, template=CHATML)
    text = Document("text", (turn("assistant", ("the end.\n", "text")),))
    encoded = encoder(tokenizer).encode(text)
    assert pieces(tokenizer, encoded) == ["<s>", "the", " end", ".\n", "</s>"]
    assert encoded.learned.tolist() == [False, True, True, True, True]
    ended = Document("text", (turn("assistant", ("the end.</s>", "text")),))
    assert pieces(tokenizer, encoder(tokenizer).encode(ended)) == ["<s>", "the", " end", ".", "</s>"]


def test_every_answer_of_a_talk_is_learned_with_its_end(bpe: Callable[..., Any]) -> None:
    tokenizer = bpe()
    encoded = encoder(tokenizer, chat_template=False).encode(TALK)
    assert "".join(pieces(tokenizer, encoded)) == (
        "Be an assistant.\nuser\nassistant</s>How many are left?\n3 left</s>"
    )
    assert learned(tokenizer, encoded) == "|assistant</s>|3 left</s>"
    assert judged(tokenizer, encoded) == []


def test_a_token_of_prompt_and_answer_is_not_learned(bpe: Callable[..., Any]) -> None:
    tokenizer = bpe()
    document = Document("a", (turn("user", ("the en", "prompt")), turn("assistant", ("d. 7", "text"))))
    encoded = encoder(tokenizer).encode(document)
    assert pieces(tokenizer, encoded) == ["the", " end", ".", " ", "7", "</s>"]
    assert learned(tokenizer, encoded) == "|. 7</s>"


def test_what_is_given_in_an_answer_is_not_learned(bpe: Callable[..., Any]) -> None:
    for template in ("", CHATML):
        tokenizer = bpe(template=template)
        begun = Document("a", (STEPS.turns[0], turn("assistant", ("3 + 4", "prompt"), (" = 7", "step"))))
        end = "<|im_end|>" if template else "</s>"
        assert learned(tokenizer, encoder(tokenizer).encode(begun)) == f"| = 7{end}"


def test_words_without_white_space_are_learned_as_well(word_level: Any) -> None:
    document = Document("a", (turn("user", ("a b\n", "prompt")), turn("assistant", ("c d", "step"), (" e", "mistake"))))
    encoded = encoder(word_level).encode(document)
    assert pieces(word_level, encoded) == ["a", "b", "c", "d", "e", "</s>"]
    assert encoded.learned.tolist() == [False, False, True, True, False, True]
    assert encoded.verdicts.tolist() == [-1, -1, -1, RIGHT, WRONG, -1]


def test_spaces_alone_are_learned_though_they_are_not_counted(bpe: Callable[..., Any]) -> None:
    document = Document("a", (turn("user", ("a\n", "prompt")), turn("assistant", ("if\n        x", "text"))))
    shown = {learned(made, encoder(made).encode(document)) for made in (bpe(), bpe(trim=True))}
    assert shown == {"|if\n        x</s>"}


# ---- with a chat template


def test_a_template_has_one_beginning(bpe: Callable[..., Any]) -> None:
    for template, begins in ((BEGUN, True), (CHATML, False)):
        tokenizer = bpe(bos=True, eos=True, template=template)
        encoded = encoder(tokenizer).encode(STEPS)
        assert encoded.ids.tolist().count(tokenizer.bos_token_id) == begins
        assert "".join(pieces(tokenizer, encoded)) == begins * "<s>" + (
            "<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n"
            "3 + 4 = 7 it is.\nthe end.\nWait, that last step is wrong.\n#### 7<|im_end|>\n"
        )
        expected = tokenizer.apply_chat_template(
            [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": STEPS.turns[1].text}],
            return_dict=False,
        )
        assert encoded.ids.tolist() == expected
        assert learned(tokenizer, encoded) == "|3 + 4 = 7 it is|Wait, that last step is wrong.\n#### 7<|im_end|>"
        assert judged(tokenizer, encoded) == [(" is", RIGHT), (" end", WRONG), ("7", RIGHT)]


@pytest.mark.parametrize("document", [TALK, WITHOUT_SYSTEM])
def test_every_turn_of_the_assistant_is_learned_with_its_end(bpe: Callable[..., Any], document: Document) -> None:
    """What is said is also the name of a role, so that its place cannot be found by looking for it."""
    tokenizer = bpe(template=CHATML)
    encoded = encoder(tokenizer).encode(document)
    assert learned(tokenizer, encoded) == "|assistant<|im_end|>|3 left<|im_end|>"
    ends = np.flatnonzero(encoded.learned & (encoded.ids == tokenizer.convert_tokens_to_ids("<|im_end|>")))
    assert len(ends) == 2


def test_a_thought_that_the_template_puts_in_is_learned(bpe: Callable[..., Any]) -> None:
    tokenizer = bpe(template=THINKING)
    encoded = encoder(tokenizer).encode(WITHOUT_SYSTEM)
    assert learned(tokenizer, encoded) == "|assistant<|im_end|>|<think>\n\n</think>\n\n3 left<|im_end|>"


@pytest.mark.parametrize("template", [TRIMMED, CHATML])
def test_white_space_around_what_is_said_is_no_part_of_it(bpe: Callable[..., Any], template: str) -> None:
    tokenizer = bpe(template=template)
    document = Document(
        "a", (turn("user", ("How many?\n", "prompt")), turn("assistant", (" 3 it", "step"), (" is \n", "mistake")))
    )
    encoded = encoder(tokenizer).encode(document)
    assert "".join(pieces(tokenizer, encoded)).endswith("<|im_start|>assistant\n3 it is<|im_end|>\n")
    assert learned(tokenizer, encoded) == "|3 it|<|im_end|>"
    assert judged(tokenizer, encoded) == [(" it", RIGHT), (" is", WRONG)]


def test_an_indentation_stays_where_the_template_lets_it(bpe: Callable[..., Any]) -> None:
    document = Document("a", (turn("user", ("a\n", "prompt")), turn("assistant", ("    it\n    is", "step"))))
    for template, said in ((CHATML, "    it\n    is"), (TRIMMED, "it\n    is")):
        tokenizer = bpe(template=template)
        encoded = encoder(tokenizer).encode(document)
        assert learned(tokenizer, encoded) == f"|{said}<|im_end|>"
        assert judged(tokenizer, encoded) == [(" is", RIGHT)]


def test_a_template_without_an_end_gets_one(bpe: Callable[..., Any]) -> None:
    tokenizer = bpe(template=NO_END)
    encoded = encoder(tokenizer).encode(WITHOUT_SYSTEM)
    assert "".join(pieces(tokenizer, encoded)) == (
        "user: user\nassistant: assistant\nuser: How many are left?\nassistant: 3 left</s>"
    )
    assert learned(tokenizer, encoded).startswith("|")
    assert encoded.learned[-1]
    assert "user" not in learned(tokenizer, encoded)
    assert "left?" not in learned(tokenizer, encoded)


def test_a_talk_that_ends_with_a_question_is_learned_up_to_it(bpe: Callable[..., Any]) -> None:
    tokenizer = bpe(template=CHATML)
    asked = WITHOUT_SYSTEM._replace(turns=WITHOUT_SYSTEM.turns[:3])
    assert learned(tokenizer, encoder(tokenizer).encode(asked)) == "|assistant<|im_end|>"


def test_a_template_that_will_not_have_the_turns_is_an_error(bpe: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match=r"talk: the chat template refuses its turns \(no system turn\)"):
        encoder(bpe(template=NO_SYSTEM)).encode(TALK)
    assert encoder(bpe(template=NO_SYSTEM)).encode(WITHOUT_SYSTEM).learned.any()
    thought = Document("b", (TALK.turns[1], turn("assistant", ("<think>a</think>b", "text"))))
    with pytest.raises(DataError, match=r"b, turn 2: the chat template changes what the assistant says \('<think>a"):
        encoder(bpe(template=THINKING)).encode(thought)
    assert not encoder(bpe(template=THINKING)).takes(thought)
    assert encoder(bpe(template=THINKING)).takes(WITHOUT_SYSTEM)


def test_chat_template_can_be_left_or_asked_for(bpe: Callable[..., Any]) -> None:
    plain = encoder(bpe(template=CHATML), chat_template=False).encode(STEPS)
    assert np.array_equal(plain.ids, encoder(bpe()).encode(STEPS).ids)
    with pytest.raises(ConfigError, match=r"chat_template is true, but the tokenizer .* has none"):
        encoder(bpe(), chat_template=True)


# ---- prompts


@pytest.mark.parametrize("template", ["", CHATML, BEGUN, THINKING, MUST_THINK, OPENS_THOUGHT, NO_END, TRIMMED])
@pytest.mark.parametrize(("bos", "eos"), [(False, False), (True, True)])
def test_a_prompt_is_what_stands_before_the_first_answer(
    bpe: Callable[..., Any], template: str, bos: bool, eos: bool
) -> None:
    tokenizer = bpe(bos=bos, eos=eos, template=template)
    found = encoder(tokenizer)
    # Only the last turn begins with an empty thought.
    for document in (STEPS, TALK) if template != MUST_THINK else (STEPS,):
        prompt, encoded = found.prompt(document), found.encode(document)
        assert prompt == encoded.ids[: len(prompt)].tolist()
        assert len(prompt) == int(np.flatnonzero(encoded.learned)[0])


ASKED = Document("asked", (turn("user", ("Is it right?\n", "prompt")), turn("assistant", ("Yes", "text"))))


@pytest.mark.parametrize(
    ("template", "marks", "shown"),
    [(INST, (), "|Yes</s>"), (MARKS, ("<|user|>", "<|end|>", "<|assistant|>"), "|Yes<|end|>")],
)
def test_the_first_word_of_an_answer_and_its_end_are_learned(
    pieces_with_spaces: Callable[..., Any], template: str, marks: tuple[str, ...], shown: str
) -> None:
    tokenizer = pieces_with_spaces(template, *marks)
    found = encoder(tokenizer)
    for document, answers in ((ASKED, 1), (ASKED._replace(turns=ASKED.turns * 2), 2)):
        encoded = found.encode(document)
        assert learned(tokenizer, encoded) == shown * answers
        prompt = found.prompt(document)
        assert prompt == encoded.ids[: len(prompt)].tolist()
        assert len(prompt) == int(np.flatnonzero(encoded.learned)[0])


# ---- windows


def test_what_is_too_long_is_cut_and_what_has_no_answer_is_left_out(bpe: Callable[..., Any]) -> None:
    tokenizer = bpe()
    whole = encoder(tokenizer).encode(STEPS)
    assert (len(whole.ids), whole.truncated) == (28, False)
    # Three tokens of prompt.
    for window, kept in ((28, True), (27, True), (4, True), (3, False)):
        found = encoder(tokenizer, window=window).encode_all([STEPS])
        assert (found.documents, found.left_out, found.truncated) == (1, int(not kept), int(kept and window < 28))
        for encoded in found.encoded:
            assert len(encoded.ids) == len(encoded.learned) == len(encoded.verdicts) == window
            assert np.array_equal(encoded.ids, whole.ids[:window])


def test_all_skills_and_masks_read_the_same_tokens(bpe: Callable[..., Any]) -> None:
    """A document whose window ends in its first mistake has nothing with loss, and is read all the same."""
    tokenizer = bpe()
    mistaken = Document("a", (STEPS.turns[0], turn("assistant", ("the end", "mistake"), (" it is.", "retraction"))))
    kept = [
        encoder(tokenizer, skill, window=5).encode_all([mistaken, STEPS])
        for skill in ({"mask": True}, {"mask": False}, {"name": "detection"})
    ]
    assert [len(found.encoded) for found in kept] == [2, 2, 2]
    assert not kept[0].encoded[0].learned.any()
    assert kept[1].encoded[0].learned.sum() == 2
    for found in kept:
        for a, b in zip(found.encoded, kept[0].encoded, strict=True):
            assert np.array_equal(a.ids, b.ids)
            assert np.array_equal(a.verdicts, b.verdicts)


def test_skills_that_texts_cannot_have_are_refused(bpe: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="mask_part must be step for texts"):
        encoder(bpe(), {"mask_part": "name"})
    with pytest.raises(ConfigError, match=r"problem_weight must be 0 for texts, but is 0.5; set loss=all"):
        encoder(bpe(), {"problem_weight": 0.5})
    slow = type("Slow", (), {"is_fast": False, "name_or_path": "slow"})
    with pytest.raises(ConfigError, match="the tokenizer slow must say where tokens stand in a text"):
        encoder(slow())
    endless = bpe()
    endless.eos_token = None
    with pytest.raises(ConfigError, match="must have an end mark, but its eos_token is empty"):
        encoder(endless)


# ---- what follows

TAILS = ["the", "t", "h", "at", "nd", "d", "ft", " it", ".", "\n", ".\n", "\n\n", " ", "é", "7"]
TEXTS = st.lists(st.sampled_from([*TAILS, "as", " en", "le", "sis"]), min_size=1, max_size=4).map("".join)


@pytest.mark.parametrize("template", ["", CHATML])
def test_a_verdict_holds_nothing_of_what_follows(bpe: Callable[..., Any], template: str) -> None:
    """Whatever follows a segment, what is read up to its verdict is the beginning of the text that ends with it."""
    tokenizer = bpe(bos=True, trim=True, template=template)
    found = encoder(tokenizer)
    seen = []

    @given(step=TEXTS)
    def check(step: str) -> None:
        step = f"a{step.rstrip()}"
        alone = found.encode(Document("a", (STEPS.turns[0], turn("assistant", (step, "step")))))
        (end,) = np.flatnonzero(alone.verdicts == RIGHT)
        for tail in TAILS:
            said = turn("assistant", (step, "step"), (f"{tail}7", "retraction"))
            followed = found.encode(Document("a", (STEPS.turns[0], said)))
            for at in np.flatnonzero(followed.verdicts == RIGHT):
                assert followed.ids[: at + 1].tolist() == alone.ids[: at + 1].tolist()
                seen.append(at == end)

    check()
    assert seen.count(True) > 20
    assert seen.count(False) > 2


# ---- the project's own generator


@pytest.mark.parametrize("kind", ["retry", "weak", "miss"])
@pytest.mark.parametrize("order", ["pq", "qp"])
def test_synthetic_texts_are_the_stream(kind: str, order: str) -> None:
    """In the family's own tokens a document is a window of the stream, with its targets and its decision points."""
    values = {"family": NANO, "kind": kind, "order": order, "retry_rate": 0.5, "seed": 3}
    settings = StreamSettings.model_validate(values)
    tokens = WindowStream(settings, packed=False).read(30)
    tokenizer = build_tokenizer(NANO)
    documents = [pair.document for pair in synthetic.pairs(settings, 30)]
    for mask in (False, True):
        found = encoder(tokenizer, {"mask": mask}, window=256).encode_all(documents)
        assert (len(found.encoded), found.truncated) == (30, 0)
        learned_BT = correction_targets(tokens.kinds, masked="step" if mask else "none")
        # The mark before the problem is of kind PROBLEM, the padding too.
        for encoded, ids, learned_T, kinds in zip(found.encoded, tokens.ids, learned_BT, tokens.kinds, strict=True):
            length = len(encoded.ids)
            assert encoded.ids.tolist() == ids[:length].tolist()
            assert (ids[length:] == tokenizer.pad_token_id).all()
            assert encoded.learned.tolist() == learned_T[:length].tolist()
            assert encoded.verdicts.tolist() == decision_labels(kinds)[:length].tolist()


def test_a_synthetic_prompt_ends_where_the_solution_begins() -> None:
    settings = StreamSettings(family=NANO, retry_rate=0.5)
    (pair,) = synthetic.pairs(settings, 1)
    tokenizer = build_tokenizer(NANO)
    prompt = encoder(tokenizer).prompt(pair.document)
    assert (prompt[0], prompt[-1]) == (word_ids(NANO)[END], word_ids(NANO)["[SOLUTION]"])
