"""The config of a trial: three layers, strict, and a name for what they resolve to."""

import shlex

import pytest

from peft_study.errors import ConfigError
from peft_study.study.config import (
    TrialConfig,
    build_config,
    check_key,
    config_hash,
    flatten,
    known_keys,
    overrides_from,
    overrides_layer,
    parse_override,
    read_yaml,
)


def test_later_layers_win() -> None:
    config = build_config({"method.name": "lora", "method.rank": 4}, {"method.rank": 8}, overrides_layer(["seed=3"]))
    assert (config.method.rank, config.seed, config.data.family) == (8, 3, "nano")


def test_flat_and_tree_are_the_same_config() -> None:
    config = build_config({"method.name": "lora", "method.rank": 4, "data.retry_rate": 0.5})
    flat = flatten(config.model_dump())
    assert build_config(flat) == config
    assert sorted(flat) == sorted(
        key for key in known_keys() if not key.startswith(("pretrained.", "corpus.", "testing."))
    )


def test_a_trial_of_the_study_knows_nothing_of_real_texts() -> None:
    """Its id is a hash of its config: what other trials are configured by must not change it."""
    study, real = build_config(), build_config({"pretrained.name": "gpt2", "corpus.name": "gsm8k"})
    assert not {"pretrained", "corpus"} & study.model_dump().keys()
    assert flatten(real.model_dump())["corpus.columns.text"] == ""
    assert build_config(flatten(real.model_dump())) == real
    with pytest.raises(ConfigError, match=r"corpus.name"):
        build_config({"pretrained.name": "gpt2"})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b=1", 1),
        ("a.b=0.5", 0.5),
        ("a.b=true", True),
        ("a.b=x=y", "x=y"),
        ("a.b=[1, 2]", [1, 2]),
        ("a.b=null", None),
    ],
)
def test_an_override_is_read_as_yaml(text: str, value: object) -> None:
    assert parse_override(text) == ("a.b", value)


@pytest.mark.parametrize("value", ["[", "@x", "x: y: z"])
def test_an_override_that_is_no_yaml_says_how_to_write_the_text(value: str) -> None:
    with pytest.raises(ConfigError, match=r"of a\.b is not; as a text it is (.*)") as raised:
        parse_override(f"a.b={value}")
    (text,) = shlex.split(str(raised.value).partition("as a text it is ")[2])
    assert parse_override(text) == ("a.b", value)


@pytest.mark.parametrize(
    "value",
    [
        "gpt2",
        "a/b.jsonl",
        "",
        "1.0",
        "true",
        "null",
        "[BACK]",
        "Wait: no.",
        "%",
        "- \n",
        "1e-3",
        2,
        0.5,
        True,
        [1, 2],
        None,
    ],
)
def test_an_override_that_is_written_is_read_as_the_same_value(value: object) -> None:
    (text,) = overrides_from({"a.b": value, "c": 1}, {"a.b": object(), "c": 1})
    assert parse_override(text) == ("a.b", value)
    assert type(parse_override(text)[1]) is type(value)


def test_a_text_is_written_as_it_is_where_nothing_else_is_read_in_it() -> None:
    assert overrides_from({"a": "meta-llama/Llama-3.2-1B", "b": "[BACK]"}, {}) == [
        "a=meta-llama/Llama-3.2-1B",
        'b="[BACK]"',
    ]


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("method.rnk", "method.rank"), ("traning.lr", "training.lr"), ("data.retryrate", "data.retry_rate")],
)
def test_an_unknown_key_names_the_nearest(key: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown config key '{key}'; the nearest known key is '{nearest}'"):
        check_key(key)


@pytest.mark.parametrize(
    ("key", "value"),
    [("data.retry_rate", 1), ("method.name", "loraa"), ("training.tokens", -1), ("training.lr", 0), ("seed", "x")],
)
def test_a_value_that_cannot_be_is_named_with_its_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config({key: value})
    assert str(caught.value).startswith(f"{key}: ")
    assert str(caught.value).endswith(f"but got {value!r}")


def test_lora_needs_a_rank() -> None:
    with pytest.raises(ConfigError, match=r"method.rank must be at least 1 for method lora"):
        build_config({"method.name": "lora"})


def test_the_hash_names_the_resolved_config() -> None:
    default = TrialConfig()
    assert config_hash(build_config({"seed": 0})) == config_hash(default)
    hashes = {
        config_hash(build_config({key: value}))
        for key, value in {"seed": 1, "base.seed": 1, "data.retry_rate": 0}.items()
    }
    assert len(hashes | {config_hash(default)}) == 4


def test_yaml_that_is_no_mapping_is_refused(tmp_path) -> None:
    path = tmp_path / "sweep.yaml"
    for text, fault in (("- 1", "mapping"), ("a: [", "is not a YAML file")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=fault):
            read_yaml(path)
    path.write_bytes(b"a: \xff")
    for unreadable in (path, tmp_path):
        with pytest.raises(ConfigError, match="is not a YAML file"):
            read_yaml(unreadable)
