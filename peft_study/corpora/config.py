"""Which texts are learned from, and how they become windows."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from peft_study.corpora.chat import RewriterConfig
from peft_study.corpora.mistakes import MistakeConfig
from peft_study.errors import ConfigError

CODE = ("humaneval", "mbpp+")
"""Test sets of programs."""
BUILT_IN = ("gsm8k", "math", *CODE)
"""Published sets, each with a test set."""


class Columns(BaseModel):
    """How the columns of a corpus are called; empty for our own name. Those of one kind of row are read, see `custom`.

    A column that is named here must be there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    messages: str = ""
    """A conversation: a list of `{role, content}`."""
    prompt: str = ""
    completion: str = ""
    question: str = ""
    solution: str = ""
    """A solution in steps."""
    answer: str = ""
    """The final answer alone; may be left out where the solution says it."""
    text: str = ""
    """Plain text, all of it learned."""


class CorpusConfig(BaseModel):
    """Which texts are learned from, and how they become windows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "igsm"
    """`igsm`, `gsm8k`, `math`, `humaneval`, `mbpp+`; or a file (.jsonl, .jsonl.gz, .json, .csv, .parquet); or a folder
    or Hub name of a `datasets` data set."""
    path: str = ""
    """Built-in ones but `igsm`: the folder or Hub name that holds the data; empty for its folder in PEFT_STUDY_DATA."""
    subset: str = ""
    """Configuration of a `datasets` data set; empty for its only one (of `gsm8k`: `main`)."""
    split: str = "train"
    """Which split is learned from."""
    validation: str = ""
    """What `validation` is measured on: a split, a file, or a built-in test set; empty to hold a share out."""
    validation_share: float = Field(default=0.05, ge=0, lt=1)
    """Share of the prompts that is held out where `validation` is empty, drawn by their hash, whatever the seed."""
    test: str = ""
    """What `test` is measured on, as in `validation`; empty for the test split of a built-in corpus."""
    test_path: str = ""
    """Where `test` is a built-in set: as `path`, of that set."""
    columns: Columns = Columns()
    """How the columns are called."""
    style: Literal["auto", "gsm8k", "math"] = "auto"
    """How rows of `question` and `solution` are cut and graded: `gsm8k`: lines, the last one `#### N`; `math`:
    sentences, the answer in `\\boxed{}`; `auto`: `math` where solutions have a box or answers are no numbers."""
    limit: int = Field(default=0, ge=0)
    """Documents that are learned from at most, drawn by the trial's seed; 0 for all, of `igsm`, which has no end, for
    8,192. What is held out stays the same."""
    mistakes: Literal["none", "weak", "miss", "foreign", "number", "rewritten", "own"] = "none"
    """Kind of the mistakes in solutions in steps (corpora/mistakes.py); `own`: those that a model has made in solutions
    of its own (corpora/own.py). Those of `igsm` are `data.kind`."""
    retry_rate: float = Field(default=0.2, ge=0, lt=1)
    """With `mistakes`: probability of one before each step, geometric; 0 is the control: clean data. With `own` a
    solution is taken as it is, and 0 gives the references of the same problems."""
    rewriter: RewriterConfig | None = None
    """With `rewritten`: the model that writes the mistakes."""
    samples: str = ""
    """With `own`: file of a model's solutions, as `peft-study solve` makes it."""
    retraction: str = "Wait, that last step is wrong."
    """With `mistakes`: what takes one back, such as `[BACK]`; empty for nothing. `igsm` has `[BACK]`."""
    window: int = Field(default=512, ge=2)
    """Tokens of a window; what a document has more is cut off."""
    packing: bool = True
    """Whether a window holds several documents, which do not see each other; else one, and padding."""
    loss: Literal["completions", "all"] = "completions"
    """What has loss for correction: what the assistant says, or prompts too."""
    chat_template: bool | Literal["auto"] = "auto"
    """Whether conversations are written as the tokenizer's chat template says; `auto` where it has one."""
    allow_test_sets: bool = False
    """Whether MATH500, HumanEval, MBPP+ and GSM8K's test split may be trained on."""
    seed: int = 0
    """Seed of the mistakes that are measured on, the same for all trials so that comparisons are paired."""

    @property
    def mistake_config(self) -> MistakeConfig:
        """Return the mistakes to put in; a rate of 0 without any."""
        if self.mistakes in ("none", "own") or not self.retry_rate:
            return MistakeConfig(retry_rate=0)
        return MistakeConfig(kind=self.mistakes, retry_rate=self.retry_rate, retraction=self.retraction)

    @model_serializer(mode="wrap")
    def _without_what_is_not_there(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in dump(self).items() if value is not None}

    @model_validator(mode="after")
    def _has_what_its_mistakes_need(self) -> "CorpusConfig":
        needs = {
            "rewriter.model and rewriter.answers": ("rewritten", self.rewriter is not None),
            "samples": ("own", bool(self.samples)),
        }
        for fields, (kind, given) in needs.items():
            if given and self.mistakes != kind:
                raise ConfigError(f"{fields} go with mistakes={kind} alone, but it is {self.mistakes}; leave them out")
            if not given and self.mistakes == kind:
                raise ConfigError(f"mistakes={kind} needs {fields}; set them, or other mistakes")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> "CorpusConfig":
        # Its own rules hold here too.
        MistakeConfig(retraction=self.retraction)
        if self.name in ("igsm", *CODE) and self.mistakes != "none":
            remedy = "set data.kind and data.retry_rate" if self.name == "igsm" else "set corpus.mistakes=none"
            raise ConfigError(f"mistakes must be none for {self.name}, but is {self.mistakes}; {remedy}")
        if self.name == "igsm" and (self.split, self.validation, self.test) != ("train", "", ""):
            raise ConfigError("igsm has its own splits; leave split, validation and test out")
        return self

    @model_validator(mode="after")
    def _has_a_test_set_at_its_path(self) -> "CorpusConfig":
        if self.test_path and self.test not in BUILT_IN:
            raise ConfigError(
                f"test_path goes with a test that is one of {', '.join(BUILT_IN)}, but test is {self.test!r}; give a "
                "file or a split as test itself"
            )
        return self

    @model_validator(mode="after")
    def _leaves_test_sets_alone(self) -> "CorpusConfig":
        if self.allow_test_sets or self.name == "igsm":
            return self
        sources = {"name": (self.name, self.split), "validation": (self.name, self.validation)}
        if self.validation in BUILT_IN:
            # Searches choose by what they measure there.
            sources["validation"] = (self.validation, "test")
        for field, (name, split) in sources.items():
            if name in BUILT_IN and (name in CODE or split == "test"):
                raise ConfigError(
                    f"{field}: {name} ({split}) is a test set, to be neither trained on nor chosen by; give it as "
                    "corpus.test, or set corpus.allow_test_sets=true"
                )
        return self
