"""A corpus as a trial reads it: documents to learn from, and what is measured on."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from peft_study.corpora import builtin, custom
from peft_study.corpora import math as competition
from peft_study.corpora.code import CodeProblem
from peft_study.corpora.config import BUILT_IN, CODE, CorpusConfig
from peft_study.corpora.leaks import leak_in
from peft_study.corpora.mistakes import documents as with_mistakes
from peft_study.corpora.own import OwnSolutions, question_key
from peft_study.corpora.records import Document, Problem
from peft_study.corpora.rewriter import Rewriter
from peft_study.corpora.sources import is_file_name, source
from peft_study.corpora.steps import Form
from peft_study.corpora.synthetic import StreamChoice, pairs, settings_of
from peft_study.errors import ConfigError, DataError
from peft_study.rng import derive_seed, python_stream

IGSM_DOCUMENTS = 8192
"""Documents of `igsm`, which has no end, where no limit is set."""

Item = Document | Problem | CodeProblem
"""What a source holds: a document, or a problem that becomes one."""


class Corpus(NamedTuple):
    """Documents to learn from, and what is measured on."""

    train: list[Document]
    validation: list[Document]
    """What is measured on: of the test set, if that was asked for. None has the prompt of a training document."""
    problems: list[Problem] | list[CodeProblem]
    """What is to be solved: the problem of each document of `validation`, in order; empty where nothing can be graded.
    What a model is given is the prompt of the document."""
    grader: str
    """What grades: `gsm8k`, `math`, `humaneval`, `mbpp+` or `igsm`; empty for nothing."""
    digest: str
    """SHA-256 of all documents."""
    source: str
    """Where they come from, in a line."""
    learned: Sequence[Problem] = ()
    """The problems that `train` is made of; empty where documents are all there is."""


def load_corpus(
    config: CorpusConfig,
    data: StreamChoice,
    seed: int,
    *,
    split: Literal["validation", "test"] = "validation",
    rewriter: Callable[[Form], Rewriter] | None = None,
    takes: Callable[[Document], bool] = lambda _: True,
) -> Corpus:
    """Return the corpus that `config` describes; `data` says which stream `igsm` is, `rewriter` opens that of `config`.

    `takes` says which documents a tokenizer's chat template will have; a model's own that it will not are left out.

    `seed` draws the documents that are learned from, and their mistakes. What is measured on is the same for all seeds,
    and what is learned from does not depend on `split`, which says what is measured on. Training documents with a
    prompt that is also measured on are left out. ConfigError and DataError say what cannot be.
    """
    if config.name == "igsm":
        return _igsm(config, data, seed, split)
    part = _guarded(_part(config, config.name, config.split), config)
    if config.mistakes != "none" and part.form is None:
        raise ConfigError(
            f"mistakes={config.mistakes} needs solutions in steps (question and solution), but {part.origin} has none; "
            "set corpus.mistakes=none"
        )
    if config.validation:
        items, validation = part.items, _guarded(_other(config, config.validation, part), config)
    else:
        items, held = held_out(part, config.validation_share)
        validation = part._replace(items=held, origin="a share of its prompts")
    test = _other(config, config.test, part) if config.test else None
    elsewhere = {key(item) for item in validation.items}
    if test and not config.allow_test_sets:
        elsewhere |= {key(item) for item in test.items}
    train = [item for item in items if key(item) not in elsewhere]
    if not train:
        raise DataError(f"{part.origin} leaves nothing to learn from: every prompt is measured on; give other data")
    measured = validation
    if split == "test":
        measured = test or _own_test(config, part, train)
    origin = f"{part.origin} without {len(part.items) - len(train)} kept apart"
    if config.limit and config.limit < len(train):
        train = python_stream(seed, "documents").sample(train, config.limit)
    writes = Mistakes(config, part.form, rewriter, takes)
    documents = writes.documents(train, derive_seed(seed, "train"), measured=False)
    # What is measured on may be of another kind, such as programs beside solutions in steps.
    writes_measured = writes if measured.form is part.form else Mistakes(config, measured.form, rewriter, takes)
    return _corpus(
        documents,
        writes_measured.documents(measured.items, derive_seed(config.seed, split), measured=True),
        _problems(measured.items, measured.grader),
        measured.grader,
        f"{len(documents)} documents of {origin}; {split}: {len(measured.items)} of {measured.origin}{writes.note()}",
        [item for item in train if isinstance(item, Problem)],
    )


def _igsm(config: CorpusConfig, data: StreamChoice, seed: int, split: Literal["validation", "test"]) -> Corpus:
    limit = config.limit or IGSM_DOCUMENTS
    train = pairs(settings_of(data, "train", seed), limit)
    count = math.ceil(limit * config.validation_share)
    held = pairs(settings_of(data, split, config.seed), count)
    return _corpus(
        [pair.document for pair in train],
        [pair.document for pair in held],
        [pair.problem for pair in held],
        "igsm",
        f"{len(train)} documents of igsm {data.family}, {data.kind} at {data.retry_rate}, seed {seed}; {split}: "
        f"{len(held)}, seed {config.seed}",
        [pair.problem for pair in train],
    )


def _corpus(
    train: list[Document],
    validation: list[Document],
    problems: list[Problem] | list[CodeProblem],
    grader: str,
    origin: str,
    learned: list[Problem],
) -> Corpus:
    digest = hashlib.sha256()
    for documents in (train, validation):
        for document in documents:
            digest.update(json.dumps(document).encode() + b"\n")
        digest.update(b"\n")
    return Corpus(train, validation, problems, grader if problems else "", digest.hexdigest(), origin, learned)


# ---- what a source holds


class Part(NamedTuple):
    """What a source holds."""

    items: Sequence[Item]
    """All documents, all problems, or all programming problems."""
    form: Form | None
    """How solutions are cut into steps; None where there are none."""
    grader: str
    origin: str
    """What it is, for messages and records."""
    published: bool = False
    """Whether it is a built-in set."""


def _part(config: CorpusConfig, name: str, split: str, style: str = "") -> Part:
    """Return what a built-in set, a file or a data set holds."""
    path, subset = (config.path, config.subset) if name == config.name else ("", "")
    if config.test_path and split == "test" and name == config.test:
        path, subset = config.test_path, ""
    if name in CODE:
        return Part(builtin.code_problems(name, path, subset), None, name, name, published=True)
    if name in BUILT_IN:
        found = builtin.problems(name, split, path, subset)
        return Part(found, builtin.FORMS[name], name, f"{name} ({split})", published=True)
    label = Path(name).name.partition(".")[0] if is_file_name(name) else f"{name}/{split}"
    origin = name if is_file_name(name) else f"{name} ({split})"
    read = custom.read(source(name, split, subset), config.columns, label)
    if read.test_id and not config.allow_test_sets:
        raise DataError(
            f"{origin} holds {read.test_id}, a problem of a test set; give other data, or set "
            "corpus.allow_test_sets=true"
        )
    if read.documents:
        return Part(read.documents, None, "", origin)
    problems, form, grader = custom.styled(read.problems, style or config.style)
    return Part(problems, form, grader, origin)


def _other(config: CorpusConfig, wanted: str, part: Part) -> Part:
    """Return what is measured on instead of a share of `part`: a built-in test set, a file, or another split."""
    style = "" if part.form is None else "math" if part.form is competition.FORM else "gsm8k"
    if wanted in BUILT_IN:
        return _part(config, wanted, "test")
    if is_file_name(wanted):
        return _part(config, wanted, "", style)
    if is_file_name(config.name):
        raise ConfigError(
            f"validation and test must be files or one of {', '.join(BUILT_IN)} where the corpus is a file, which has "
            f"no splits, but got {wanted!r}; give a file"
        )
    return _part(config, config.name, wanted, style)


def _own_test(config: CorpusConfig, part: Part, train: list[Item]) -> Part:
    """Return the test set of a built-in corpus; DataError where it has prompts that are learned from."""
    if config.name not in BUILT_IN:
        raise ConfigError(
            f"{part.origin} has no test set of its own; set corpus.test to a split, a file or a built-in set"
        )
    test = _part(config, config.name, "test")
    common = {key(item) for item in train} & {key(item) for item in test.items}
    if common and not config.allow_test_sets:
        raise DataError(
            f"{part.origin} and its test set have {len(common)} prompts in common; name that test set as corpus.test, "
            "which keeps them apart"
        )
    return test


def _guarded(part: Part, config: CorpusConfig) -> Part:
    """Return what may be learned from: DataError where a question of a test set is in it.

    From a built-in set, as published, such a problem is left out.
    """
    if config.allow_test_sets:
        return part
    leaks = {item.id: name for item in part.items for text in _texts(item) if (name := leak_in(text))}
    if leaks and not part.published:
        first, name = next(iter(leaks.items()))
        raise DataError(
            f"{part.origin} has {len(leaks)} documents with questions of test sets, first {first} with one of {name}; "
            "leave them out, or set corpus.allow_test_sets=true"
        )
    return part._replace(items=[item for item in part.items if item.id not in leaks])


def _texts(item: Item) -> list[str]:
    if isinstance(item, Document):
        return [turn.text for turn in item.turns]
    return [item.prompt if isinstance(item, CodeProblem) else item.question, item.solution]


# ---- keeping prompts apart


def key(item: Item) -> str:
    """Return what two documents with the same prompt share: what is given before the first answer, in words.

    Of a text, which has no prompt, it is the text; a system's words are no part of it.
    """
    if isinstance(item, Document):
        roles = [turn.role for turn in item.turns]
        end = roles.index("assistant") if "assistant" in roles else len(roles)
        prompt = " ".join(turn.text for turn in item.turns[:end] if turn.role == "user")
        text = prompt or " ".join(_texts(item))
    else:
        text = _texts(item)[0]
    return question_key(text)


def held_out(part: Part, share: float) -> tuple[list[Item], list[Item]]:
    """Return what is learned from and what is held out, either with one prompt at least, unless `share` is 0."""
    if not share:
        return list(part.items), []
    keys = [key(item) for item in part.items]
    places = {text: derive_seed(0, "held out", text) / 2**63 for text in keys}
    if len(places) < 2:
        raise DataError(f"{part.origin} has one prompt, so none can be held out; set corpus.validation")
    in_order = sorted(places, key=places.__getitem__)
    held = {text for text in in_order[:-1] if places[text] < share} | {in_order[0]}
    train = [item for item, text in zip(part.items, keys, strict=True) if text not in held]
    return train, [item for item, text in zip(part.items, keys, strict=True) if text in held]


# ---- documents


class Mistakes:
    """Makes documents: solutions in steps get the mistakes that a config asks for."""

    def __init__(
        self,
        config: CorpusConfig,
        form: Form | None,
        rewriter: Callable[[Form], Rewriter] | None = None,
        takes: Callable[[Document], bool] = lambda _: True,
    ) -> None:
        """Make one for solutions of a `form`; None for what has no steps."""
        self.config, self.form = config, form
        self.own = OwnSolutions(Path(config.samples), form, takes) if form and config.mistakes == "own" else None
        self.rewriter: Rewriter | None = None
        if config.rewriter and config.retry_rate and form:
            if rewriter is None:
                raise ConfigError("mistakes=rewritten needs what opens its rewriter; give it to load_corpus")
            self.rewriter = rewriter(form)

    def documents(self, items: Sequence[Item], seed: int, *, measured: bool) -> list[Document]:
        """Return documents with mistakes drawn by `seed`; what is `measured` on is one document for each item."""
        config = self.config
        if self.form is None:
            read = [builtin.code_document(item) if isinstance(item, CodeProblem) else item for item in items]
            return [item for item in read if isinstance(item, Document)]
        problems = [item for item in items if isinstance(item, Problem)]
        mistakes = config.mistake_config.model_copy(update={"seed": seed})
        threads = config.rewriter.threads if config.rewriter and not config.rewriter.local else 1
        clean = list(with_mistakes(problems, mistakes, self.form, self.rewriter, threads=threads))
        counts = getattr(self.rewriter, "counts", {})
        if counts.get("given up") and not counts.get("written"):
            raise DataError(
                f"the model has written no mistake that could be used ({dict(counts)}); see what it answers in "
                f"{config.rewriter.answers if config.rewriter else ''}, and take another model or more max_tokens"
            )
        if self.own is None:
            return clean
        return self.own.documents(
            problems, clean, config.retraction, as_references=not config.retry_rate, measured=measured
        )

    def note(self) -> str:
        """Return what is to be said of a model's part in it; empty where none had one."""
        counts = self.own.counts if self.own else getattr(self.rewriter, "counts", {})
        return "".join(f"; {what} {count}" for what, count in sorted(counts.items()))


def _problems(items: Sequence[Item], grader: str) -> list[Problem] | list[CodeProblem]:
    if grader in CODE:
        return [item for item in items if isinstance(item, CodeProblem)]
    return [item for item in items if isinstance(item, Problem)] if grader else []
