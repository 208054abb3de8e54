"""What MLflow runs when it loads a model that `finetune` has trained: transformers and peft, without this package.

MLflow copies this file beside the adapter (models from code), so nothing is pickled. A correction model continues
prompts, a detection model gives the probability that the step at the end of each text is wrong.
"""

from typing import Any

import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel
from transformers import GenerationConfig

MARK = "\ue000\ue001\ue000"
"""Stands for an answer, to see what a template puts before it."""


class Served(PythonModel):
    """A base with what was trained on it; `model_config` says which, and how it writes."""

    def load_context(self, context: Any) -> None:
        """Load the base and put the adapter on it."""
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

        config, trained = context.model_config, context.artifacts["trained"]
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        options: dict[str, Any] = {"dtype": getattr(torch, config["dtype"])} if config["dtype"] != "auto" else {}
        options = options or {"dtype": torch.bfloat16 if device and device.type == "cuda" else torch.float32}
        if config["quantization"] == "nf4":
            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=options["dtype"],
                bnb_4bit_use_double_quant=config["double_quantization"],
            )  # fmt: skip
        elif config["quantization"] == "int8":
            options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
        is_adapter = config["method"] != "full"
        source, revision = (config["base"], config["revision"] or "main") if is_adapter else (trained, "main")
        options |= {"revision": revision, "trust_remote_code": False, "use_safetensors": True}
        words = trained if config["own_tokenizer"] else source
        self.tokenizer: Any = AutoTokenizer.from_pretrained(
            words, revision=revision if words == source else "main", padding_side="left"
        )
        model: Any = AutoModelForCausalLM.from_pretrained(source, **options)
        if "quantization_config" not in options:
            model = model.to(device)
        rows = len(model.get_input_embeddings().weight)
        if is_adapter and len(self.tokenizer) > rows:
            model.resize_token_embeddings(len(self.tokenizer))
        self.model: Any = (PeftModel.from_pretrained(model, trained) if is_adapter else model).eval()
        self.config = config

    def predict(self, context: Any, model_input: list[dict[str, str]], params: dict[str, Any] | None = None):  # noqa: ARG002
        """Return what follows each `prompt`, or for detection the probability that the last step is wrong.

        `solution` is what has been written to the prompt so far, up to the end of a step; detection needs some.
        ValueError where a row lacks what is needed, or has more tokens than the model can see.
        """
        judges = self.config["skill"] == "detection"
        for number, each in enumerate(model_input, 1):
            missing = [key for key in ("prompt", "solution")[: 1 + judges] if not each.get(key)]
            if missing:
                raise ValueError(f"row {number} must have a {missing[0]}, but has {sorted(each)}; add it")
        ids = [self._ids(each["prompt"], each.get("solution", "")) for each in model_input]
        longest = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        for number, tokens in enumerate(ids, 1):
            if longest and tokens.shape[1] > longest:
                raise ValueError(
                    f"row {number} has {tokens.shape[1]} tokens, but the model sees {longest}; give a shorter text"
                )
        return [self._judge(each) if judges else self._write(each) for each in ids]

    def _ids(self, prompt: str, solution: str) -> torch.Tensor:
        """Return the tokens of a text as they were in training, up to the one at which its end is judged."""
        is_chat = bool(self.config["chat_template"] and self.tokenizer.chat_template)
        said = solution.rstrip()
        text = (self._opening(prompt.strip(), is_answered=bool(said)) if is_chat else prompt) + said
        ids = self._tokens(text, special=not is_chat)
        if self.config["skill"] == "detection":
            # A dot may be one token with the new line that goes on, so a verdict stands before it.
            ids = ids[: _common(ids, self._tokens(f"{text}\n", special=not is_chat))]
        return torch.tensor([ids], device=self.model.device)

    def _opening(self, prompt: str, *, is_answered: bool) -> str:
        """Return what a conversation has before an answer, or what to begin one from: the template's prompt, if answers
        were learned behind its tokens."""
        asked = [{"role": "user", "content": prompt}]
        marked = [*asked, {"role": "assistant", "content": MARK}]
        plain, given, written = (
            self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=is_prompt, enable_thinking=False
            )
            for turns, is_prompt in ((asked, False), (asked, True), (marked, False))
        )
        written = written.partition(MARK)[0]
        if is_answered:
            return written
        is_prompt = written.startswith(given) and (given != plain or not written[len(given) :].strip())
        ids = self._tokens(given, special=False)
        return given if is_prompt and _common(ids, self._tokens(written, special=False)) == len(ids) else written

    def _tokens(self, text: str, *, special: bool) -> list[int]:
        ids = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        # Some put an end behind every text.
        end = self.tokenizer.eos_token
        return ids[:-1] if ids[-1:] == [self.tokenizer.eos_token_id] and not text.endswith(end) else ids

    @torch.no_grad()
    def _write(self, ids: torch.Tensor) -> str:
        temperature, stops = self.config["temperature"], self.config["stop_ids"]
        drawing = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        options = GenerationConfig(
            **drawing,
            max_new_tokens=self.config["max_new_tokens"],
            eos_token_id=stops or None,
            pad_token_id=min(stops, default=0),
        )
        # The options that a checkpoint brings would change what was measured.
        self.model.generation_config = GenerationConfig()
        written = self.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=options)
        return self.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)

    @torch.no_grad()
    def _judge(self, ids: torch.Tensor) -> float:
        logits = self.model(input_ids=ids).logits[0, -1]
        return float(logits[self.config["verdict_ids"]].float().softmax(0)[1])


def _common(a: list[int], b: list[int]) -> int:
    """Return how many tokens two lists begin with in common."""
    return next((i for i, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))


set_model(Served())
