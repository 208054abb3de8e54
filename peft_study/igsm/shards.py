"""Shards: windows of a stream kept on disk, memory-mapped, with a manifest and checksums.

A folder holds `manifest.json`, and for each shard `00000.ids.npy` (uint16) and `00000.kinds.npy` (uint8), both of shape
[windows, length]. A build that was interrupted goes on after its last whole shard.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from peft_study.errors import DataError
from peft_study.files import write_atomic
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.stream import Tokens, WindowStream

MANIFEST = "manifest.json"
VERSION = 1


class Shard(BaseModel, extra="forbid"):
    """One pair of files."""

    name: str
    windows: int
    ids: str
    """Checksum (SHA-256) of the file of token ids."""
    kinds: str
    """Checksum of the file of kinds."""


class Manifest(BaseModel, extra="forbid"):
    """What a folder holds."""

    model_config = ConfigDict(frozen=True)

    version: int
    settings: StreamSettings
    length: int
    """Tokens of a window."""
    next_index: int = 0
    """The document that the next window would start with."""
    shards: tuple[Shard, ...] = ()

    @property
    def windows(self) -> int:
        """Windows of all shards together."""
        return sum(shard.windows for shard in self.shards)


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


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of `folder`; raise DataError where it is missing, damaged or of another version."""
    path, remedy = folder / MANIFEST, f"delete {folder} and build again"
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{folder} holds no shards ({MANIFEST} is missing); make them: peft-study data build") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}); {remedy}") from error
    version = found.get("version") if isinstance(found, dict) else None
    if version != VERSION:
        raise DataError(f"{path} must be of version {VERSION}, but is of version {version}; {remedy}")
    try:
        return Manifest.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{path} is damaged ({where}: {first['msg']}); {remedy}") from error


def build_shards(
    settings: StreamSettings,
    folder: Path,
    *,
    tokens: int,
    length: int | None = None,
    shard_windows: int = 4096,
    on_shard: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Write windows of `settings` with at least `tokens` tokens to `folder` and return its manifest.

    Goes on where an earlier build of the same stream stopped; raises DataError where `folder` holds another one, or a
    shard that is damaged, or cannot be written to. `on_shard` is told how many windows there are and will be, at the
    start and after each shard.
    """
    stream = WindowStream(settings, length=length)
    windows = -(-tokens // stream.length)
    manifest = Manifest(version=VERSION, settings=settings, length=stream.length)
    if (folder / MANIFEST).exists():
        before = ShardStream(folder).manifest
        if (before.settings, before.length) != (manifest.settings, manifest.length):
            raise DataError(f"{folder} holds shards of another stream; choose another folder, or delete this one")
        manifest = before
    stream.next_index = manifest.next_index
    if on_shard:
        on_shard(manifest.windows, windows)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while manifest.windows < windows:
            count = min(shard_windows, windows - manifest.windows)
            name, part = f"{len(manifest.shards):05d}", stream.read(count)
            ids, kinds = _write(folder, f"{name}.ids", part.ids), _write(folder, f"{name}.kinds", part.kinds)
            shard = Shard(name=name, windows=count, ids=ids, kinds=kinds)
            manifest = manifest.model_copy(
                update={"shards": (*manifest.shards, shard), "next_index": stream.next_index}
            )
            write_atomic(folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
            if on_shard:
                on_shard(manifest.windows, windows)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written to ({error.strerror}); choose another folder, or make room and build again"
        ) from error
    return manifest


class ShardStream:
    """The windows of a folder of shards, in the order in which the stream gave them."""

    def __init__(self, folder: Path, *, verify: bool = True) -> None:
        """Open `folder`; with `verify` compare every checksum first and raise DataError where one differs."""
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.settings = self.manifest.settings
        self.manifest_hash = hashlib.sha256(self.manifest.model_dump_json().encode()).hexdigest()[:16]
        self.length = self.manifest.length
        """Tokens of a window."""
        self.next_index = 0
        """The next window: the whole state."""
        self._parts = [
            Tokens(
                self._open(shard.name, "ids", shard.windows, shard.ids if verify else ""),
                self._open(shard.name, "kinds", shard.windows, shard.kinds if verify else ""),
            )
            for shard in self.manifest.shards
        ]
        self._starts = np.cumsum([0, *(len(part.ids) for part in self._parts)])

    def _open(self, name: str, what: str, windows: int, checksum: str) -> np.ndarray:
        path = self.folder / f"{name}.{what}.npy"
        remedy = f"delete {self.folder} and build again"
        try:
            differs = bool(checksum) and _checksum(path) != checksum
            values = None if differs else np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error}); {remedy}") from error
        if values is None:
            raise DataError(f"{path} is damaged (its checksum is not that of the manifest); {remedy}")
        if values.shape != (windows, self.length):
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
