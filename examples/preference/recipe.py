"""How the preference channel is trained: pairs, insert, train and build, by the command line.

    python -m examples.preference.recipe OUT    # the checkpoint, its report, an int8 engine

The channel has the shape of the sentiment example's and sees the same snippets, but of their
ratings only which of two is the higher one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from examples.preference import pairs
from examples.sentiment.material import Material, prepare
from examples.sentiment.recipe import TRAINABLE, insert_arguments, run

TRAINING = (
    *("--objective", "pairwise", "--trainable", TRAINABLE, "--learning-rate", "0.004"),
    # Held out of the training split, to choose the best step.
    *("--eval-fraction", "0.03", "--eval-every", "50", "--eval-items", "64"),
)
#: In steps, so that a busy machine learns as much.
FULL = ("--batch-tokens", "512", "--epochs", "1", "--max-steps", "160")
QUICK = ("--batch-tokens", "128", "--max-steps", "2")


def make(
    material: Material,
    out: Path,
    length: Sequence[str],
    limit: int | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Make the pairs, train, and build ``out/engine``; what is there stays.

    Args:
        material: The base and the rated snippets.
        out: A directory.
        length: `FULL` or `QUICK`.
        limit: The most snippets of each split that are read.
        report: Receives a line before the slow part.

    Returns:
        The training report.
    """
    out.mkdir(parents=True, exist_ok=True)
    checkpoint, engine = out / "checkpoint", out / "engine"
    if not engine.is_dir():
        train, test = out / "train.jsonl", out / "test.jsonl"
        counts = pairs.write(material.train, train, limit), pairs.write(material.test, test, limit)
        report(f"{counts[0]} pairs to train on and {counts[1]} to test on, made from ratings")
        if not (checkpoint / "training_state").is_dir():
            run(insert_arguments(material, checkpoint))
        data = ("--data", str(train), "--test-data", str(test))
        run(["train", str(checkpoint), *data, *TRAINING, *length])
        run(["build", str(checkpoint), str(engine), "--target", "onnx", "--precision", "int8"])
    found: dict[str, Any] = json.loads((checkpoint / "training_report.json").read_text("utf-8"))
    return found


if __name__ == "__main__":
    make(prepare(report=print), Path(sys.argv[1]), FULL)
