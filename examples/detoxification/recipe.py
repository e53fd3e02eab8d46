"""How the detoxification channel is trained: insert, train and build, by the command line.

    python -m examples.detoxification.recipe OUT    # the checkpoint, its report, an int8 engine

Its two sides learn from the comments that DExperts' two models learn from. On neutral text, which
is neither, both are held to the base; otherwise their difference would also be about the subject.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.detoxification.data import Material, prepare
from examples.sentiment.recipe import TRAINABLE, run

SIGNAL = "harmless"
#: As wide as that of the sentiment example, and at the same place: what it reads is the base's.
SHAPE = (
    *("--hidden-size", "32", "--intermediate-size", "32", "--heads", "3"),
    *("--first-layer", "14", "--attention", "shared", "--init", "probe"),
)
TRAINING = (
    *("--objective", "experts", "--trainable", TRAINABLE, "--max-tokens", "96"),
    *("--learning-rate", "0.004", "--batch-tokens", "512"),
    # Held out of the training split, to choose the best step.
    *("--eval-fraction", "0.03", "--eval-every", "50", "--eval-items", "64"),
)
#: In steps, so that a busy machine learns as much: 51,000 tokens, a third of what is there.
FULL = ("--epochs", "1", "--max-steps", "100")
QUICK = ("--max-steps", "2", "--batch-tokens", "128")


def make(
    material: Material, out: Path, length: Sequence[str], limit: int | None = None
) -> dict[str, Any]:
    """Insert, train and build ``out/engine``; what is there stays. Returns the training report.

    Args:
        material: The base, and the comments and neutral texts to learn from.
        out: A directory.
        length: `FULL` or `QUICK`.
        limit: The most comments and the most neutral texts that are read.
    """
    out.mkdir(parents=True, exist_ok=True)
    checkpoint, texts, engine = out / "checkpoint", out / "texts.jsonl", out / "engine"
    if not engine.is_dir():
        files = (material.train, material.neutral)
        lines = [line for f in files for line in f.read_text("utf-8").splitlines(True)[:limit]]
        texts.write_text("".join(lines), encoding="utf-8")
        if not (checkpoint / "training_state").is_dir():
            places = ("insert", str(material.base), str(checkpoint), *SHAPE, "--data", str(texts))
            run([*places, "--signal", f"{SIGNAL}:expert", "--adapter", "--force"])
        run(["train", str(checkpoint), "--data", str(texts), *TRAINING, *length])
        build = ("--target", "onnx", "--precision", "int8", "--out", str(engine))
        run(["build", str(checkpoint), *build])
    report: dict[str, Any] = json.loads((checkpoint / "training_report.json").read_text("utf-8"))
    return report


if __name__ == "__main__":
    make(prepare(report=print), Path(sys.argv[1]), FULL)
