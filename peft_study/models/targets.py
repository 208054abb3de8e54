"""Which linear layers a preset means, in whatever architecture.

A layer is known by its name and that of the part it belongs to, so that `attn.c_proj` and `mlp.c_proj` are told apart.
What a layer computes is written in letters, several where it is fused: q query, k key, v value, o output of attention;
u the way up in the MLP (gates too), d the way down.
"""

from collections import Counter
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peft_study.errors import ConfigError

Layer = nn.Linear | Conv1D
"""What can be adapted; quantised layers are nn.Linear too."""

PRESETS = {"qv": "qv", "attention": "qkvo", "mlp": "ud"}
"""Preset to what its layers compute; `all-linear` is every linear layer but routers and the output embedding."""

_WORDS = {"q": "query", "k": "key", "v": "value", "o": "output", "u": "up", "d": "down"}

_IN_ATTENTION = {
    **dict.fromkeys(("q_proj", "query", "wq", "q_a_proj", "q_b_proj"), "q"),
    **dict.fromkeys(("k_proj", "key", "wk"), "k"),
    **dict.fromkeys(("v_proj", "value", "wv"), "v"),
    **dict.fromkeys(("kv_proj", "kv_a_proj_with_mqa", "kv_b_proj"), "kv"),
    **dict.fromkeys(("c_attn", "query_key_value", "qkv_proj", "Wqkv", "qkv", "W_pack"), "qkv"),
    **dict.fromkeys(("o_proj", "out_proj", "c_proj", "dense", "wo"), "o"),
}
_IN_MLP = {
    **dict.fromkeys(("gate_proj", "up_proj", "gate_up_proj", "c_fc", "fc_in", "fc1", "w1", "w3"), "u"),
    **dict.fromkeys(("dense_h_to_4h", "input_linear"), "u"),
    **dict.fromkeys(("down_proj", "c_proj", "fc_out", "fc2", "dense_4h_to_h", "w2", "output_linear"), "d"),
}
_OF_LAYER = {"fc1": "u", "fc2": "d"}
_PARTS = {
    **dict.fromkeys(("attn", "self_attn", "attention", "self_attention"), _IN_ATTENTION),
    **dict.fromkeys(
        ("mlp", "ffn", "feed_forward", "experts", "shared_expert", "shared_experts", "shared_mlp"), _IN_MLP
    ),
    "block_sparse_moe": _IN_MLP,
    "layers": _OF_LAYER,
}
"""Part of a layer to what the linear layers in it compute. The names are those of transformers' architectures."""

_ROUTERS = ("gate", "router", "shared_expert_gate", "wg")
"""Linear layers that choose among experts: a handful of outputs each, so that there is nothing low about a rank."""

UNCALLED = ("mixer.out_proj", "mixer.dt_proj", "mamba.out_proj", "mamba.dt_proj")
"""Linear layers of state-space models whose weight is read without calling them, which would pass an adapter by."""


class Matched(NamedTuple):
    """The layers that targets mean in a model."""

    targets: str
    layers: dict[str, Layer]
    """By name, in the model's order."""
    notes: tuple[str, ...]
    """What is only approximated, and what is left out."""

    def summary(self) -> str:
        """Return one line that says how many layers of which kind there are."""
        kinds = Counter(kind_of(name) for name in self.layers)
        return f"{self.targets}: " + ", ".join(f"{count} x {kind}" for kind, count in kinds.items())


def _parts(name: str) -> list[str]:
    """Return what a name says without numbers: layers.3.mlp.up_proj is layers, mlp, up_proj."""
    return [part for part in name.split(".") if not part.isdigit()]


def kind_of(name: str) -> str:
    """Return the name of a layer and of its part, `mlp.up_proj`: the same for all layers alike."""
    return ".".join(_parts(name)[-2:])


def _is_router(name: str) -> bool:
    return name.rpartition(".")[2] in _ROUTERS


def _role(name: str) -> str:
    """Return what the layer computes, in letters; empty where that is not known.

    >>> _role("transformer.h.0.attn.c_proj"), _role("transformer.h.0.mlp.c_proj"), _role("backbone.mixer.in_proj")
    ('o', 'd', '')
    """
    *_, part, leaf = ["", *_parts(name)]
    return _PARTS.get(part, {}).get(leaf, "")


def towers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the parts of `model` that texts do not pass, by name: towers for images or sounds, and what joins them on.

    They are whatever stands beside the decoder of a model that wraps one.
    """
    decoder, at = model.get_decoder(), model.base_model
    if at is model and decoder not in (getattr(model, "language_model", None), getattr(model, "text_model", None)):
        return {}
    if decoder not in set(at.modules()):
        return {}
    found: dict[str, nn.Module] = {}
    while at is not decoder:
        holder = next(child for child in at.children() if decoder in set(child.modules()))
        others = (holder, model.get_output_embeddings())
        found |= {name: child for name, child in at.named_children() if child not in others}
        at = holder
    return found


def linear_layers(model: PreTrainedModel) -> dict[str, Layer]:
    """Return every linear layer that texts pass but the output embedding, by name."""
    beside = {model.get_output_embeddings(), *(each for tower in towers(model).values() for each in tower.modules())}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module not in beside
    }


def sides(layer: Layer) -> tuple[int, int]:
    """Return the inputs and outputs of a layer, which the weight of a quantised one does not show."""
    return (layer.nx, layer.nf) if isinstance(layer, Conv1D) else (layer.in_features, layer.out_features)


def match(model: PreTrainedModel, targets: str) -> Matched:
    """Return the layers that `targets`, a preset or the end of names, means in `model`.

    Raises ConfigError where there are none, or where not all that a preset stands for can be told apart.
    """
    linears = linear_layers(model)
    if targets == "all-linear":
        chosen = {name: layer for name, layer in linears.items() if not (_is_router(name) or kind_of(name) in UNCALLED)}
        left = _kinds(linears.keys() - chosen.keys())
        notes = (f"{targets}: left alone: {', '.join(left)}",) if left else ()
        notes += _experts(model)
    elif targets in PRESETS:
        wanted = PRESETS[targets]
        chosen = {name: layer for name, layer in linears.items() if set(_role(name)) & set(wanted)}
        missing = [_WORDS[letter] for letter in wanted if not any(letter in _role(name) for name in chosen)]
        if missing:
            raise ConfigError(
                f"method.targets={targets} needs layers for {', '.join(missing)}, but {type(model).__name__} has none "
                f"that are known as such; its linear layers are {', '.join(_kinds(linears))}"
                f"{''.join(f', and {note}' for note in _experts(model))}; set method.targets=all-linear"
            )
        notes = _approximations(targets, chosen, linears) + (_experts(model) if "u" in wanted else ())
    else:
        chosen = {name: layer for name, layer in linears.items() if f".{name}".endswith(f".{targets}")}
        notes = ()
    if not chosen:
        there = ", ".join(sorted({name.rpartition(".")[2] for name in linears}))
        raise ConfigError(f"method.targets={targets!r} matches no module of this model; it has {there}")
    return Matched(targets, chosen, notes)


def matched_modules(model: PreTrainedModel, targets: str) -> dict[str, Layer]:
    """Return the linear layers that `targets` names; raise ConfigError where it names none."""
    return match(model, targets).layers


def _kinds(names: "set[str] | dict[str, Layer]") -> list[str]:
    return sorted({kind_of(name) for name in names})


def _approximations(targets: str, chosen: dict[str, Layer], linears: dict[str, Layer]) -> tuple[str, ...]:
    """Return what the layers of a preset hold beyond it, and which layers are not known."""
    notes: dict[str, None] = {}  # in order, each once
    for name in chosen:
        if beyond := [letter for letter in _role(name) if letter not in PRESETS[targets]]:
            notes[f"{targets}: {name.rpartition('.')[2]} also holds {' and '.join(beyond)}"] = None
    unknown = {name for name in linears if not _role(name) and not _is_router(name)}
    if unknown:
        notes[f"{targets}: not known, so left alone: {', '.join(_kinds(unknown))}"] = None
    return tuple(notes)


def expert_parameters(model: PreTrainedModel) -> list[str]:
    """Return the kinds of weights of experts that are held as one 3-D parameter, as `experts.up_proj`."""
    names = {
        f"{name}.{own}"
        for name, module in model.named_modules()
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and not isinstance(module, nn.modules.conv._ConvNd)
    }
    return _kinds(names)


def _experts(model: PreTrainedModel) -> tuple[str, ...]:
    kinds = expert_parameters(model)
    return (f"3-D parameters that LoRA on linear layers does not reach: {', '.join(kinds)}",) if kinds else ()


def short_names(model: nn.Module, names: "list[str] | dict[str, Layer]") -> list[str]:
    """Return the shortest ends of module names that mean `names` and no other module, sorted.

    They are how peft is told what to adapt: a name means every module whose name ends with it after a dot.
    """
    all_names, wanted = [name for name, _ in model.named_modules() if name], set(names)
    ends = {name: [name.split(".", cut)[-1] for cut in range(name.count("."), -1, -1)] for name in all_names}
    shared = {end for name in all_names if name not in wanted for end in ends[name]}
    return sorted({next(end for end in ends[name] if end not in shared) for name in wanted})
