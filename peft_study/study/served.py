"""What MLflow runs when it loads a model that `finetune` has trained: transformers and peft, without this package.

MLflow copies this file beside the adapter (models from code), so nothing is pickled. A correction model continues
prompts, a detection model gives the probability that the step at the end of each text is wrong.
"""

from typing import Any

import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel
from transformers import GenerationConfig


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
        self.tokenizer: Any = AutoTokenizer.from_pretrained(words, padding_side="left")
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
        """Return the tokens of a text as they were in training."""
        is_chat = bool(self.config["chat_template"] and self.tokenizer.chat_template)
        if is_chat:
            turns = [{"role": "user", "content": prompt.strip()}]
            prompt = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        ids = self.tokenizer(prompt + solution.rstrip(), add_special_tokens=not is_chat)["input_ids"]
        return torch.tensor([ids], device=self.model.device)

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


set_model(Served())
