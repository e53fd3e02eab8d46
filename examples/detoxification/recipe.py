"""How the detoxification channel is made: insert, train and build, by the command line.

    python -m examples.detoxification.recipe OUT    # two checkpoints, a report, two int8 engines

Its two sides begin as a naive Bayes classifier of the comments that DExperts' two models learn
from, and are built so (``begun``); then a copy is trained on the same comments and built again. On
neutral text, which is neither, both sides are held to the base while they learn; otherwise their
difference would also be about the subject.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.detoxification.data import Material, prepare
from examples.sentiment.recipe import run

SIGNAL = "harmless"
#: As wide as that of the sentiment example, and at the same place: what it reads is the base's.
SHAPE = (
    *("--hidden-size", "32", "--intermediate-size", "32", "--heads", "3"),
    *("--first-layer", "14", "--attention", "shared", "--init", "probe"),
)
LEARNS = rf"(v|o|gate|up|down)_proj|model\.norm|signals\.{SIGNAL}\.weight"
TRAINING = (
    # Its biases stay as they began: they are what tells the classes apart whatever came before.
    *("--objective", "experts", "--trainable", LEARNS, "--max-tokens", "96"),
    *("--discriminative-weight", "0.5", "--learning-rate", "0.002", "--batch-tokens", "512"),
    # Held out of the training split, to choose the best step.
    *("--eval-fraction", "0.03", "--eval-every", "50", "--eval-items", "64"),
)
#: In steps, so that a busy machine learns as much: 51,000 tokens, a third of what is there.
FULL = ("--epochs", "1", "--max-steps", "100")
QUICK = ("--max-steps", "2", "--batch-tokens", "128")


def make(
    material: Material, out: Path, length: Sequence[str], limit: int | None = None
) -> dict[str, Any]:
    """Make ``out/begun-engine`` and ``out/engine``; what is there stays.

    Args:
        material: The base, and the comments and neutral texts to learn from.
        out: A directory.
        length: `FULL` or `QUICK`.
        limit: The most comments and the most neutral texts that are read.

    Returns:
        The training report.
    """
    out.mkdir(parents=True, exist_ok=True)
    begun, trained, texts = out / "begun", out / "checkpoint", out / "texts.jsonl"
    engines = out / "begun-engine", out / "engine"
    if not all(engine.is_dir() for engine in engines):
        files = (material.train, material.neutral)
        lines = [line for f in files for line in f.read_text("utf-8").splitlines(True)[:limit]]
        texts.write_text("".join(lines), encoding="utf-8")
        if not (engines[0].is_dir() and (trained / "training_state").is_dir()):
            places = ("insert", str(material.base), str(begun), *SHAPE, "--data", str(texts))
            run([*places, "--signal", f"{SIGNAL}:expert", "--adapter", "--force"])
            _build(begun, engines[0])
            shutil.rmtree(trained, ignore_errors=True)
            shutil.copytree(begun, trained)
        run(["train", str(trained), "--data", str(texts), *TRAINING, *length])
        _build(trained, engines[1])
    report: dict[str, Any] = json.loads((trained / "training_report.json").read_text("utf-8"))
    return report


def _build(checkpoint: Path, engine: Path) -> None:
    options = ("--target", "onnx", "--precision", "int8", "--out", str(engine), "--force")
    run(["build", str(checkpoint), *options])


if __name__ == "__main__":
    make(prepare(report=print), Path(sys.argv[1]), FULL)
