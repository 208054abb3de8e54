"""What MLflow runs when it loads a model that `finetune` has trained: transformers and peft, without this package.

MLflow copies this file beside the adapter (models from code), so nothing is pickled. A correction model continues
prompts, a detection model gives the probability that the step at the end of each text is wrong.
"""

from typing import Any

import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


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

    def predict(self, context: Any, model_input: list[str], params: dict[str, Any] | None = None):  # noqa: ARG002
        """Return what follows each text, or for detection the probability that its last step is wrong."""
        return [self._judge(text) if self.config["skill"] == "detection" else self._write(text) for text in model_input]

    def _ids(self, text: str, *, prompt: bool) -> torch.Tensor:
        special = True
        if prompt and self.config["chat_template"] and self.tokenizer.chat_template:
            turns = [{"role": "user", "content": text}]
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            special = False
        ids = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        return torch.tensor([ids], device=self.model.device)

    @torch.no_grad()
    def _write(self, text: str) -> str:
        ids = self._ids(text, prompt=True)
        temperature = self.config["temperature"]
        drawing = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        written = self.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pad_token_id=pad,
            max_new_tokens=self.config["max_new_tokens"], **drawing,
        )  # fmt: skip
        return self.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)

    @torch.no_grad()
    def _judge(self, text: str) -> float:
        logits = self.model(input_ids=self._ids(text, prompt=False)).logits[0, -1]
        return float(logits[self.config["verdict_ids"]].float().softmax(0)[1])


set_model(Served())
