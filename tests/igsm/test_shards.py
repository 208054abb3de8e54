"""Shards: the stream's own windows, whole or with a clear error, and a build that goes on."""

import json
from pathlib import Path

import numpy as np
import pytest

from peft_study.errors import DataError
from peft_study.igsm.families import NANO
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.shards import ShardStream, build_shards
from peft_study.igsm.stream import WindowStream

SETTINGS = StreamSettings(family=NANO, retry_rate=0.3, seed=4)
TOKENS = 10 * NANO.max_tokens


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    build_shards(SETTINGS, tmp_path / "shards", tokens=TOKENS, shard_windows=4)
    return tmp_path / "shards"


def test_shards_hold_what_the_stream_gives(shards: Path) -> None:
    expected = WindowStream(SETTINGS).read(10)
    stream = ShardStream(shards)
    assert (len(stream), stream.length, stream.settings) == (10, NANO.max_tokens, SETTINGS)
    parts = [stream.read(count) for count in (3, 1, 6)]
    assert np.array_equal(np.concatenate([part.ids for part in parts]), expected.ids)
    assert np.array_equal(np.concatenate([part.kinds for part in parts]), expected.kinds)
    with pytest.raises(DataError, match="has 10 windows, but 11 are asked for"):
        stream.read(1)


def test_an_interrupted_build_goes_on_to_the_same_bytes(shards: Path, tmp_path: Path) -> None:
    def stop(done: int, _: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_shards(SETTINGS, tmp_path / "again", tokens=TOKENS, shard_windows=4, on_shard=stop)
    assert ShardStream(tmp_path / "again").read(8).ids.shape == (8, NANO.max_tokens)
    build_shards(SETTINGS, tmp_path / "again", tokens=TOKENS, shard_windows=4)
    assert _files(tmp_path / "again") == _files(shards)


def test_a_finished_build_is_left_as_it_is_and_can_be_made_longer(shards: Path) -> None:
    before = _files(shards)
    build_shards(SETTINGS, shards, tokens=TOKENS, shard_windows=4)
    assert _files(shards) == before
    build_shards(SETTINGS, shards, tokens=TOKENS + 1, shard_windows=4)
    assert np.array_equal(ShardStream(shards).read(11).ids, WindowStream(SETTINGS).read(11).ids)


def test_shards_of_another_stream_are_not_mixed(shards: Path) -> None:
    with pytest.raises(DataError, match="shards of another stream"):
        build_shards(SETTINGS.model_copy(update={"seed": 5}), shards, tokens=TOKENS)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: _flip(folder / "00001.ids.npy"), "00001.ids.npy is damaged .its checksum"),
        (lambda folder: _cut(folder / "00002.kinds.npy"), "00002.kinds.npy is damaged .its checksum"),
        (lambda folder: (folder / "00000.ids.npy").unlink(), "00000.ids.npy cannot be read"),
        (lambda folder: (folder / "manifest.json").unlink(), "holds no shards"),
        (lambda folder: _cut(folder / "manifest.json"), "manifest.json is damaged"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "must be of version 1, but is of version None"),
        (lambda folder: _change(folder, version=7), "must be of version 1, but is of version 7"),
        (lambda folder: _change(folder, shards=[1]), "manifest.json is damaged .shards.0: "),
        (lambda folder: _change(folder, settings={"family": "nano"}), "manifest.json is damaged .settings.family: "),
        (lambda folder: _change(folder, other=1), "manifest.json is damaged .other: "),
    ],
)
def test_damage_is_named(shards: Path, damage, message: str) -> None:
    damage(shards)
    with pytest.raises(DataError, match=message) as raised:
        ShardStream(shards)
    assert str(raised.value).count("build again") <= 1
    if "holds no shards" not in message:
        with pytest.raises(DataError, match=message):  # nothing is added to what is damaged
            build_shards(SETTINGS, shards, tokens=2 * TOKENS)


def _change(folder: Path, **values: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_without_checksums_a_cut_shard_is_found_all_the_same(shards: Path) -> None:
    _cut(shards / "00001.ids.npy")
    with pytest.raises(DataError, match=r"00001\.ids\.npy"):
        ShardStream(shards, verify=False)
