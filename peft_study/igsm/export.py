"""Streams for other tools: `datasets` of both kinds, JSON lines and Parquet."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, IterableDataset, List, Value

from peft_study.files import replacing
from peft_study.igsm.records import records
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.shards import ShardStream
from peft_study.igsm.stream import WindowStream

WINDOW_FEATURES = Features({"input_ids": List(Value("uint16")), "kinds": List(Value("uint8"))})
"""A packed window: token ids, and what each token is (`text.Kind`)."""
RECORD_FEATURES = Features(
    {
        **{name: Value("string") for name in ("problem", "solution", "answer", "template_hash")},
        **{name: Value("int32") for name in ("modulus", "op", "ip")},
        "mistakes": List({"sentence": Value("int32"), "kind": Value("string"), "computable": Value("bool")}),
    }
)
"""A document (`records.DocumentRecord`)."""


def _windows(settings: dict[str, Any], length: int | None, starts: list[int], windows: int) -> Iterator[dict[str, Any]]:
    for start in starts:
        stream = WindowStream(StreamSettings.model_validate(settings), length=length, next_index=start)
        for _ in range(windows):
            ids, kinds = stream.read(1)
            yield {"input_ids": ids[0], "kinds": kinds[0]}


def iterable_windows(
    settings: StreamSettings, *, length: int | None = None, parts: int = 1, windows: int = 2**20
) -> IterableDataset:
    """Return packed windows as an iterable dataset of `parts` parts, each of `windows` windows of its own documents.

    A DataLoader gives each of its workers some of the parts; what a part holds does not depend on how many there are.
    """
    settings_values = settings.model_dump(mode="json")
    return IterableDataset.from_generator(
        _windows,
        features=WINDOW_FEATURES,
        gen_kwargs={
            "settings": settings_values,
            "length": length,
            "starts": [part * 2**40 for part in range(parts)],
            "windows": windows,
        },
    )


def map_windows(folder: Path, *, verify: bool = True) -> Dataset:
    """Return the windows of a folder of shards as a map-style dataset, whose copy lies in its folder `datasets`."""
    stream = ShardStream(folder, verify=verify)

    def rows() -> Iterator[dict[str, Any]]:
        for index in range(len(stream)):
            ids, kinds = stream.window(index)
            yield {"input_ids": ids, "kinds": kinds}

    found: Any = Dataset.from_generator(
        rows, features=WINDOW_FEATURES, fingerprint=f"igsm-{stream.manifest_hash}", cache_dir=str(folder / "datasets")
    )
    return found


def documents(settings: StreamSettings, count: int) -> Dataset:
    """Return `count` documents as a map-style dataset of texts, one row a document."""
    rows = list(records(settings, count))
    columns = {name: [row[name] for row in rows] for name in RECORD_FEATURES}
    return Dataset.from_dict(columns, features=RECORD_FEATURES)


def write_jsonl(settings: StreamSettings, count: int, path: Path) -> None:
    """Write `count` documents as JSON lines."""
    with replacing(path) as new, new.open("w", encoding="utf-8") as file:
        for record in records(settings, count):
            file.write(json.dumps(record) + "\n")


def write_parquet(settings: StreamSettings, count: int, path: Path) -> None:
    """Write `count` documents as a Parquet file."""
    with replacing(path) as new:
        documents(settings, count).to_parquet(str(new))
