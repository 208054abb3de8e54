"""What MLflow runs when it loads a model: it reads texts as training did, and says what it cannot read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_study.corpora.config import CorpusConfig
from peft_study.corpora.records import Document, Segment, Turn
from peft_study.skills.config import SkillConfig
from peft_study.skills.encode import Encoder
from peft_study.study.served import Served

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKS = CHATML.replace("assistant\\n{% endif %}", "assistant\\n<think>\\n{% endif %}")
"""Opens a thought, which no document has."""
NO_PROMPT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
SPACE = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}:{% else %} {{ m.content }}{% endif %}"
SPACE += "{% endfor %}"
"""Has no prompt for the assistant but a space, which is a part of the answer's first token."""
QUESTION = "Tom has 3 apples and buys 4 more. How many?\n"


@pytest.fixture
def serve(checkpoint: Callable[[str], Path]) -> Callable[..., Served]:
    """Return a function that serves the tiny Llama as it is."""

    def make(**changes: Any) -> Served:
        served = Served()
        served.tokenizer = AutoTokenizer.from_pretrained(checkpoint("llama"), padding_side="left")
        served.model = AutoModelForCausalLM.from_pretrained(checkpoint("llama"), dtype=torch.float32).eval()
        usual = {"skill": "correction", "chat_template": False, "temperature": 0.0, "stop_ids": [], "max_new_tokens": 6}
        served.config = usual | {"verdict_ids": [5, 6]} | changes
        return served

    return make


@pytest.mark.parametrize("template", ["", CHATML, THINKS, NO_PROMPT, SPACE])
def test_a_text_has_the_tokens_that_it_had_in_training(serve: Callable[..., Served], template: str) -> None:
    served = serve(chat_template=True, skill="detection")
    # In many tokenizers these two are one; a verdict then stands before them.
    served.tokenizer.add_tokens([".\n"])
    served.tokenizer.chat_template = template or None
    encoder = Encoder(served.tokenizer, SkillConfig(name="detection"), CorpusConfig(name="gsm8k"))
    steps = Segment("3 + 4 = 8.\n", "mistake"), Segment("So 8.", "step")
    document = Document("d", (Turn("user", (Segment(QUESTION, "prompt"),)), Turn("assistant", steps)))
    in_training = encoder.encode(document)
    for at, said in zip((in_training.verdicts >= 0).nonzero()[0], ("3 + 4 = 8.\n", "3 + 4 = 8.\nSo 8."), strict=True):
        assert served._ids(QUESTION, said)[0].tolist() == in_training.ids[: at + 1].tolist()
    writing = serve(chat_template=True)
    writing.tokenizer.chat_template = template or None
    assert writing._ids(QUESTION, "")[0].tolist() == encoder.prompt(document)


def test_writing_ends_where_a_stop_is_written(serve: Callable[..., Served]) -> None:
    served = serve()
    ids = served._ids(QUESTION, "")
    with torch.no_grad():
        greedy = served.model.generate(
            input_ids=ids, do_sample=False, max_new_tokens=6, eos_token_id=None, pad_token_id=0
        )
    new = greedy[0, ids.shape[1] :].tolist()
    assert served.predict(None, [{"prompt": QUESTION}]) == [served.tokenizer.decode(new)]
    stop = new[2]
    served.config["stop_ids"] = [stop]
    short = served.tokenizer.decode(new[: new.index(stop) + 1])
    assert served.predict(None, [{"prompt": QUESTION}]) == [short]


def test_what_the_checkpoint_says_of_writing_is_not_looked_at(serve: Callable[..., Served]) -> None:
    served, other = serve(), serve()
    other.model.generation_config.update(repetition_penalty=5.0, min_new_tokens=3, do_sample=True)
    assert served.predict(None, [{"prompt": QUESTION}]) == other.predict(None, [{"prompt": QUESTION}])


def test_a_row_that_cannot_be_read_is_named(serve: Callable[..., Served]) -> None:
    judging, longest = serve(skill="detection"), serve().model.config.max_position_embeddings
    good = {"prompt": QUESTION, "solution": "3 + 4 = 8."}
    assert 0 < float(judging.predict(None, [good])[0]) < 1
    with pytest.raises(ValueError, match=r"row 2 must have a solution, but has \['prompt'\]"):
        judging.predict(None, [good, {"prompt": QUESTION}])
    with pytest.raises(ValueError, match="row 1 must have a prompt"):
        serve().predict(None, [{"solution": "x"}])
    with pytest.raises(ValueError, match=f"row 1 has .* tokens, but the model sees {longest}"):
        serve().predict(None, [{"prompt": "apples " * longest}])
