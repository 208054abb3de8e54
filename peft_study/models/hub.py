"""Checkpoints of transformers, from a folder or the Hub, loaded safely and with errors that say what to do."""

import os
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from safetensors import SafetensorError
from tokenizers import AddedToken
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from peft_study.errors import CheckpointError, ConfigError
from peft_study.models.config import PretrainedConfig
from peft_study.models.device import this_device
from peft_study.models.quantize import protect, quantization_config

_UNREADABLE = (OSError, ValueError, RuntimeError, ImportError, KeyError, SafetensorError, StrictDataclassError)
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def dtype_of(config: PretrainedConfig, device: torch.device) -> torch.dtype:
    """Return what the model of `config` is held in on `device`."""
    if config.dtype != "auto":
        return getattr(torch, config.dtype)
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bf16 else torch.float32


def _check_place(config: PretrainedConfig) -> None:
    """Raise CheckpointError where `config.name` is neither a folder with whole weights nor a name on the Hub."""
    folder, remedy = Path(config.name), "set pretrained.name to the folder of a whole one, or to a name on the Hub"
    if not folder.is_dir():
        if not _HUB_NAME.fullmatch(config.name):
            raise CheckpointError(f"no checkpoint in {folder}, there is no such folder; {remedy}")
        return
    if (folder / "adapter_config.json").is_file():
        # transformers would load its base and put the adapter on it without a word, and ours would wrap that again.
        raise CheckpointError(
            f"{folder} holds an adapter, not a model; set pretrained.name to its base, and go on from the adapter as a "
            "saved one"
        )
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"no checkpoint in {folder} (config.json is missing); {remedy}")
    if any((folder / f"model.safetensors{end}").is_file() for end in ("", ".index.json")):
        return
    if any(next(folder.glob(pattern), None) for pattern in _PICKLED):
        raise CheckpointError(
            f"the weights in {folder} are pickled, and loading a pickle can run any code; convert them to safetensors "
            "where you trust them, with save_pretrained of transformers"
        )
    raise CheckpointError(f"no checkpoint in {folder} (model.safetensors is missing); {remedy}")


_NOT_TO_BE_HAD = r"couldn't connect|offline|not a valid model identifier|gated repo|access to it is restricted"


def _explained(config: PretrainedConfig, error: Exception) -> CheckpointError | ConfigError:
    """Return what `error` of transformers or the Hub means for the user, in one line."""
    text = str(error)
    line = next(iter(text.splitlines()), type(error).__name__).strip()
    where = f"the checkpoint {config.name}" + (f" at revision {config.revision}" if config.revision else "")
    if "trust_remote_code" in text:
        return ConfigError(
            f"{where} comes with code of its own, which is not run; set pretrained.trust_remote_code=true if you have "
            "read that code"
        )
    if config.attention != "auto" and re.search(r"attention|flash_attn|FlashAttention|sdpa", text):
        return ConfigError(
            f"pretrained.attention={config.attention} cannot be had here for {config.name} ({line}); set "
            "pretrained.attention=auto"
        )
    if "Unrecognized configuration class" in text:
        return CheckpointError(f"{where} is no causal language model; give one that transformers loads as such")
    if "safetensors" in text and "does not appear to have" in text:
        return CheckpointError(f"{where} has no safetensors weights, and pickled ones are not loaded; give another")
    if "not a valid git identifier" in text:
        return CheckpointError(f"{where} is not there; set pretrained.revision to a branch, a tag or a commit of it")
    if isinstance(error, HfHubHTTPError) or re.search(_NOT_TO_BE_HAD, text):
        return CheckpointError(
            f"{where} is neither a local folder nor to be had from the Hub ({line}); check its name, your connection "
            "and, for a gated one, that you are logged in, or download it first and give its folder"
        )
    return CheckpointError(f"{where} cannot be read ({line}); download it again, or give another")


def _read_config(config: PretrainedConfig, options: dict[str, Any]) -> Any:
    """Return the architecture of the checkpoint; raise CheckpointError where it cannot be trained as a causal one."""
    read = AutoConfig.from_pretrained(config.name, **options)
    kind = read.model_type
    if read.is_encoder_decoder or (kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(read, "is_decoder", True)):
        raise CheckpointError(
            f"the checkpoint {config.name} must be a causal language model, but is a {kind}, which sees what comes "
            "after a word or has an encoder; give another"
        )
    if getattr(read, "quantization_config", None) is not None:
        raise CheckpointError(
            f"the checkpoint {config.name} is quantised already; give the plain one and set pretrained.quantization"
        )
    return read


def stored_dtype(config: PretrainedConfig) -> torch.dtype:
    """Return what the weights of a checkpoint are stored in, as its config says; fp32 where that says nothing."""
    _check_place(config)
    options = {"revision": config.revision or "main", "trust_remote_code": config.trust_remote_code}
    try:
        return getattr(_read_config(config, options), "dtype", None) or torch.float32
    except _UNREADABLE as error:
        raise _explained(config, error) from error


def load_pretrained(config: PretrainedConfig) -> PreTrainedModel:
    """Return the model of `config`, on this process's device where it is quantised, else on the CPU.

    No pickle is loaded and no code is run that comes with the checkpoint, unless asked for by name. Raises
    CheckpointError where it is missing, damaged, foreign or not whole, ConfigError where it cannot be had so.
    """
    _check_place(config)
    # Else transformers asks a service to convert a repository that has pickled weights alone, in public.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "true")
    device = this_device()
    dtype = dtype_of(config, device)
    where: dict[str, Any] = {"revision": config.revision or "main", "trust_remote_code": config.trust_remote_code}
    how: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    if config.attention != "auto":
        how["attn_implementation"] = config.attention
    if quantization := quantization_config(config, dtype):
        how |= {"quantization_config": quantization, "device_map": {"": device}}
    try:
        read = _read_config(config, where)
        with torch.random.fork_rng(devices=[]):
            loaded: Any = AutoModelForCausalLM.from_pretrained(config.name, config=read, **where, **how)
    except (CheckpointError, ConfigError):
        raise
    except _UNREADABLE as error:
        raise _explained(config, error) from error
    model, report = loaded
    if strange := sorted(report["missing_keys"]):
        raise CheckpointError(
            f"the checkpoint {config.name} does not hold all of {type(model).__name__} ({strange[0]} is missing and "
            "would be random); give a whole one"
        )
    protect(model)
    return model


def load_tokenizer(config: PretrainedConfig) -> Any:
    """Return the tokenizer of `config`; raise CheckpointError where there is none."""
    _check_place(config)
    try:
        return AutoTokenizer.from_pretrained(
            config.name, revision=config.revision or "main", trust_remote_code=config.trust_remote_code
        )
    except _UNREADABLE as error:
        if Path(config.name).is_dir():
            line = next(iter(str(error).splitlines()), type(error).__name__)
            raise CheckpointError(
                f"no tokenizer can be read in {config.name} ({line}); save one there with save_pretrained"
            ) from error
        raise _explained(config, error) from error


@torch.no_grad()
def add_tokens(model: PreTrainedModel, tokenizer: Any, texts: tuple[str, ...]) -> list[int]:
    """Make each of `texts` one token and return the ids whose rows are not the base's; they are the mean of the old.

    Besides the tokens that are new these are those that the tokenizer has and the model has no row for, but for a pad
    token, which is not needed. The embeddings grow where they must and never shrink: many have more rows than words.
    """
    tables: Any = model.get_input_embeddings(), model.get_output_embeddings()
    known, rows = tokenizer.get_vocab(), len(tables[0].weight)
    # Not "special": decoding with special tokens left out must not lose them.
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in texts if text not in known])
    vocabulary = tokenizer.get_vocab()
    strangers = {token for token in vocabulary.values() if token >= rows and token != tokenizer.pad_token_id}
    new_ids = sorted(strangers | {vocabulary[text] for text in texts if text not in known})
    if not new_ids:
        return []
    if (needed := max(vocabulary.values()) + 1) > rows:
        with torch.random.fork_rng(devices=[]):
            model.resize_token_embeddings(needed, mean_resizing=False)
        tables = model.get_input_embeddings(), model.get_output_embeddings()
    fresh = sorted({*new_ids, *range(rows, needed)})
    for table in tables[:1] if tables[0].weight is tables[1].weight else tables:
        table.weight[fresh] = table.weight[: fresh[0]].float().mean(0).to(table.weight.dtype)
    if getattr(tables[1], "bias", None) is not None:
        tables[1].bias[fresh] = tables[1].bias[: fresh[0]].float().mean().to(tables[1].bias.dtype)
    return new_ids
