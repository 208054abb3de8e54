"""`make bench-quant`: a LoRA step over a quantised base beside the same step over the plain one, by the same loop.

Ratios are plain over quantised time: 1 is as fast. Writes `benchmarks/results/<machine kind>-quantized.json`.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.race import Gate, Row, Side, race, show, write
from benchmarks.training_sides import SHAPES
from peft_study.corpora.config import CorpusConfig
from peft_study.corpora.corpus import load_corpus
from peft_study.igsm.families import NANO
from peft_study.models.base import build_base, save_base
from peft_study.models.config import MethodConfig, PretrainedConfig
from peft_study.models.device import this_device
from peft_study.models.pretrained import PretrainedLearner
from peft_study.skills.config import DataConfig, SkillConfig
from peft_study.skills.encode import Encoder
from peft_study.skills.packing import CorpusStream
from peft_study.telling import Point
from peft_study.training.config import TrainingConfig
from peft_study.training.machine import prepare_process, settled_pretrained, usable_cores
from peft_study.training.natural import CorpusTask
from peft_study.training.supervised import train

FORMS: dict[str, tuple[dict[str, Any], float | None]] = {
    "nf4": ({"quantization": "nf4"}, 0.77),
    "nf4, dequantised weights kept": ({"quantization": "nf4", "cache_dequantized": True}, 0.95),
    "int8": ({"quantization": "int8"}, None),
}
"""How a base is held, and the ratio that is aimed at."""
STEPS = 10_000


def step(gate: Gate, *, shape: str, held: dict[str, Any], windows: int, threads: int, kernels: str) -> None:
    """Train an adapter of rank 16 over a base that is held so."""
    prepare_process(threads)
    with tempfile.TemporaryDirectory() as name:
        base = Path(name, "base")
        save_base(build_base(NANO, SHAPES[shape], 0), NANO, base, {})
        corpus = CorpusConfig(name="igsm", limit=512, window=256)
        tokens = STEPS * windows * corpus.window
        asked = TrainingConfig(lr=1e-3, tokens=tokens, batch_windows=windows, points=STEPS, checkpoint_seconds=1e9)
        config, pretrained = settled_pretrained(asked, PretrainedConfig(name=str(base), **held), Path(kernels))
        learner = PretrainedLearner(pretrained, MethodConfig(name="lora", rank=16), 0)
        learner.place(this_device())
        encoder = Encoder(learner.tokenizer, SkillConfig(), corpus)
        encoded = encoder.encode_all(load_corpus(corpus, DataConfig(), 0).train).encoded
        stream = CorpusStream(encoded, corpus.window, learner.pad_id, packing=True, seed=0)
        config = config.model_copy(update={"attention": "sdpa" if pretrained.attention == "auto" else "eager"})

        def on_point(point: Point) -> None:
            gate(point.metrics["train/loss"])

        task = CorpusTask(stream, stream.windows.rows(slice(0, 0)), verdict=False)
        train(learner, task, config, folder=Path(name), seed=0, on_point=on_point)


def rows_of(shape: str, windows: int, threads: int, kernels: str) -> list[Row]:
    """Return a row for each way to hold a base of `shape`."""
    options = {"shape": shape, "windows": windows, "threads": threads, "kernels": kernels}
    plain = Side("plain", step, options | {"held": {}})
    return [
        race(
            f"LoRA r16 {shape}, {name}",
            Side(name, step, options | {"held": held}),
            plain,
            unit=f"a step of {windows} windows",
            target=target,
            parity=None,
        )
        for name, (held, target) in FORMS.items()
    ]


def main() -> None:
    """Measure, print and write."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as kernels:
        rows = [row for shape in ("nano", "10M") for row in rows_of(shape, 8, usable_cores(), kernels)]
    for row in rows:
        print(show(row), flush=True)
    print(f"wrote {write(rows, 'quantized')}")


if __name__ == "__main__":
    main()
