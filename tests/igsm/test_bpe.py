"""GPT-2's tokens: a small byte-level tokenizer stands for the real one, which the network would be needed for."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from peft_study.errors import CheckpointError
from peft_study.igsm.bpe import BpeStream, load_gpt2
from peft_study.igsm.families import NANO
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.stream import draw_document
from peft_study.igsm.text import ANSWER, BACK, END, PROBLEM, SOLUTION, Kind, document_words, join
from peft_study.igsm.tokenizer import build_tokenizer

SETTINGS = StreamSettings(family=NANO, retry_rate=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a byte-level tokenizer of GPT-2's kind: its splitting and its first 256 ids, few merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    documents = [draw_document(SETTINGS, index) for index in range(20)]
    texts = [join([w.text for w in document_words(d.problem, d.solution, d.mistakes)]) for d in documents]
    alphabet = list(_bytes_to_unicode().values())
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, special_tokens=[], show_progress=False)  # pyright: ignore[reportCallIssue]
    tokenizer.train_from_iterator(texts, trainer)
    state = tokenizer.get_vocab()
    order = {character: i for i, character in enumerate(alphabet)}
    merged = sorted((word for word in state if word not in order), key=state.__getitem__)
    vocab = order | {word: 256 + i for i, word in enumerate(merged)}
    merges = [tuple(merge) for merge in _merges(tokenizer)]
    ordered = Tokenizer(models.BPE(vocab=vocab, merges=merges))  # pyright: ignore[reportArgumentType]
    ordered.pre_tokenizer, ordered.decoder = tokenizer.pre_tokenizer, tokenizer.decoder
    path = tmp_path_factory.mktemp("gpt2")
    PreTrainedTokenizerFast(tokenizer_object=ordered, eos_token="<|endoftext|>").save_pretrained(path)
    return path


def _merges(tokenizer: Tokenizer) -> list[list[str]]:
    import json

    return json.loads(tokenizer.to_str())["model"]["merges"]


def _bytes_to_unicode() -> dict[int, str]:
    """Return GPT-2's letters for the 256 bytes, in the order of its ids: printable ones first, then the others."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + i) for i, byte in enumerate(rest)}}


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return load_gpt2(folder)


def test_words_one_by_one_are_the_tokens_of_the_text(tokenizer: PreTrainedTokenizerBase) -> None:
    stream = BpeStream(SETTINGS, tokenizer)
    for index in range(20):
        document = draw_document(SETTINGS, index)
        tokens = stream.document(document)
        words = [w.text for w in document_words(document.problem, document.solution, document.mistakes)]
        problem, solution = words.index(SOLUTION), words.index(ANSWER)
        parts = [words[1:problem], words[problem + 1 : solution], words[solution + 1 : -1]]
        encoded = [tokenizer(join(part).replace(BACK, "BACK"))["input_ids"] for part in parts]
        expected = [222, *encoded[0], 223, *encoded[1], 224, *encoded[2], tokenizer.eos_token_id]
        assert tokens.ids.tolist() == expected
        assert (words[0], words[-1]) == (PROBLEM, END)


def test_kinds_go_with_the_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    document = draw_document(SETTINGS, 0)
    tokens = BpeStream(SETTINGS, tokenizer).document(document)
    names = str(tokenizer.decode(tokens.ids[tokens.kinds == Kind.NAME].tolist()))
    owner, thing = document.problem.names(document.problem.order[0])
    assert names.startswith(f" {owner} {thing}")
    assert tokenizer.decode(tokens.ids[tokens.kinds == Kind.FINAL].tolist()) == f" {document.solution.answer}"


def test_windows_begin_with_the_end_mark(tokenizer: PreTrainedTokenizerBase) -> None:
    for packed in (True, False):
        window = BpeStream(SETTINGS, tokenizer, length=700, packed=packed).read(2)
        assert window.ids[:, 0].tolist() == [tokenizer.eos_token_id] * 2
        assert window.ids[:, 1].tolist() == [222] * 2


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    build_tokenizer(NANO).save_pretrained(tmp_path / "words")
    with pytest.raises(CheckpointError, match="must be byte-level"):
        load_gpt2(tmp_path / "words")
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        load_gpt2(tmp_path / "nothing")
