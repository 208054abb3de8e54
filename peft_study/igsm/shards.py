"""Shards: windows of a stream kept on disk, memory-mapped, with a manifest and checksums.

A folder holds `manifest.json`, and for each shard `00000.ids.npy` (uint16) and `00000.kinds.npy` (uint8), both of shape
[windows, length]. A build that was interrupted goes on after its last whole shard.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from peft_study.errors import DataError
from peft_study.files import write_atomic
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.stream import Tokens, WindowStream

MANIFEST = "manifest.json"
VERSION = 1


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def _write(folder: Path, name: str, values: np.ndarray) -> str:
    new, path = folder / f".{name}.new.npy", folder / f"{name}.npy"
    np.save(new, values)
    new.replace(path)
    return _checksum(path)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of `folder`; raise DataError where it is missing, damaged or of another version."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{folder} holds no shards ({MANIFEST} is missing); make them: peft-study data build") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}); delete {folder} and build again") from error
    if not isinstance(manifest, dict) or manifest.get("version") != VERSION:
        found = manifest.get("version") if isinstance(manifest, dict) else None
        raise DataError(
            f"{path} must be of version {VERSION}, but is of version {found}; delete {folder} and build again"
        )
    return manifest


def build_shards(
    settings: StreamSettings,
    folder: Path,
    *,
    tokens: int,
    length: int | None = None,
    shard_windows: int = 4096,
    on_shard: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write windows of `settings` with at least `tokens` tokens to `folder` and return its manifest.

    Goes on where an earlier build of the same stream stopped; raises DataError where `folder` holds another one.
    `on_shard` is told how many windows there are and how many there will be.
    """
    stream = WindowStream(settings, length=length)
    windows = -(-tokens // stream.length)
    wanted = {"version": VERSION, "settings": settings.model_dump(mode="json"), "length": stream.length}
    manifest: dict[str, Any] = wanted | {"next_index": 0, "windows": 0, "shards": []}
    if (folder / MANIFEST).exists():
        manifest = read_manifest(folder)
        if {key: manifest.get(key) for key in wanted} != wanted:
            raise DataError(f"{folder} holds shards of another stream; choose another folder, or delete this one")
    folder.mkdir(parents=True, exist_ok=True)
    stream.next_index = manifest["next_index"]
    while manifest["windows"] < windows:
        count = min(shard_windows, windows - manifest["windows"])
        name = f"{len(manifest['shards']):05d}"
        part = stream.read(count)
        manifest["shards"].append(
            {
                "name": name,
                "windows": count,
                "ids": _write(folder, f"{name}.ids", part.ids),
                "kinds": _write(folder, f"{name}.kinds", part.kinds),
            }
        )
        manifest |= {"windows": manifest["windows"] + count, "next_index": stream.next_index}
        write_atomic(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        if on_shard:
            on_shard(manifest["windows"], windows)
    return manifest


class ShardStream:
    """The windows of a folder of shards, in the order in which the stream gave them."""

    def __init__(self, folder: Path, *, verify: bool = True) -> None:
        """Open `folder`; with `verify` compare every checksum first and raise DataError where one differs."""
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.settings = StreamSettings.model_validate(self.manifest["settings"])
        self.manifest_hash = hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()[:16]
        self.length: int = self.manifest["length"]
        """Tokens of a window."""
        self.next_index = 0
        """The next window: the whole state."""
        self._parts = [
            Tokens(self._open(shard, "ids", verify=verify), self._open(shard, "kinds", verify=verify))
            for shard in self.manifest["shards"]
        ]
        self._starts = np.cumsum([0, *(len(part.ids) for part in self._parts)])

    def _open(self, shard: dict[str, Any], what: str, *, verify: bool) -> np.ndarray:
        path = self.folder / f"{shard['name']}.{what}.npy"
        remedy = f"delete {self.folder} and build again"
        try:
            if verify and _checksum(path) != shard[what]:
                raise DataError(f"{path} is damaged (its checksum is not that of the manifest); {remedy}")
            values = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error}); {remedy}") from error
        if values.shape != (shard["windows"], self.length):
            raise DataError(f"{path} is damaged (it has shape {values.shape}); {remedy}")
        return values

    def __len__(self) -> int:
        """Return the number of windows."""
        return int(self._starts[-1])

    def window(self, index: int) -> Tokens:
        """Return one window, both arrays of shape [length]."""
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        at = index - int(self._starts[shard])
        return Tokens(self._parts[shard].ids[at], self._parts[shard].kinds[at])

    def read(self, num_windows: int) -> Tokens:
        """Return the next windows, both arrays of shape [num_windows, length]; DataError where there are no more."""
        if self.next_index + num_windows > len(self):
            raise DataError(
                f"{self.folder} has {len(self)} windows, but {self.next_index + num_windows} are asked for; "
                "build more: peft-study data build goes on where it stopped"
            )
        rows = [self.window(self.next_index + i) for i in range(num_windows)]
        self.next_index += num_windows
        return Tokens(np.stack([row.ids for row in rows]), np.stack([row.kinds for row in rows]))
