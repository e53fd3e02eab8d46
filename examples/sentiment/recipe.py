"""How the shipped channel was trained: insert, then train, by the command line.

    python -m examples.sentiment.recipe OUT             # the full run: 2 epochs
    python -m examples.sentiment.recipe OUT --short     # what `make demo TRAIN=1` does: 160 s

The full run writes ``OUT/trained.safetensors``, which is shipped beside this file, and the
checkpoint ``OUT/checkpoint``, with ``training_report.json`` and ``training_curve.png``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.sentiment.material import Material, prepare

#: The trained tensors that are shipped: float16, to be laid over the copy initialisation.
SHIPPED = Path(__file__).with_name("trained.safetensors")
#: A narrow channel is enough, because A reads all of the base at every layer.
WIDTHS = ("--hidden-size", "32", "--intermediate-size", "32", "--heads", "3")
#: The upper half of the layers, attending where heads of the base do.
SHAPE = ("--first-layer", "14", "--attention", "shared")
#: What is not listed stays a copy and need not be shipped.
TRAINABLE = r"(v|o|gate|up|down)_proj|model\.norm|signals"
TRAINING = (
    *("--objective", "regression", "--trainable", TRAINABLE),
    *("--learning-rate", "0.004", "--dtype", "auto"),
    # Held out of the training split, to choose the best step; the test split chooses nothing.
    *("--eval-fraction", "0.03", "--eval-every", "60"),
)
FULL = ("--epochs", "2")
#: Smaller steps, and so more of them, learn more from few tokens.
SHORT = ("--epochs", "1", "--batch-tokens", "512", "--max-seconds", "160")


def insert_arguments(material: Material, checkpoint: Path) -> list[str]:
    """Arguments of ``otter-export`` that insert the untrained channel."""
    places = [str(material.base), str(checkpoint)]
    options = [*WIDTHS, *SHAPE, "--init", "copy", "--adapter", "--force"]
    return ["insert", *places, *options]


def train_arguments(
    material: Material, checkpoint: Path, length: Sequence[str], delta: Path | None = None
) -> list[str]:
    """Arguments of ``otter-export`` that train it; ``length`` is `FULL` or `SHORT`."""
    data = ["--data", str(material.train), "--test-data", str(material.test)]
    extra = [] if delta is None else ["--delta", str(delta)]
    return ["train", str(checkpoint), *data, *TRAINING, *length, *extra]


def make(material: Material, out: Path, length: Sequence[str]) -> Any:
    """Insert and train; an interrupted run goes on where it was. Returns the training report."""
    checkpoint = out / "checkpoint"
    out.mkdir(parents=True, exist_ok=True)
    if not (checkpoint / "training_state").is_dir():
        run(insert_arguments(material, checkpoint))
    run(train_arguments(material, checkpoint, length, out / SHIPPED.name))
    return json.loads((checkpoint / "training_report.json").read_text(encoding="utf-8"))


def run(arguments: Sequence[str]) -> None:
    """Run ``otter-export``; its messages go to the terminal."""
    status = subprocess.run([sys.executable, "-m", "otter_export", *arguments], check=False)
    if status.returncode:
        sys.exit(status.returncode)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description="Train the sentiment channel of the demo.")
    parser.add_argument("out", type=Path, help="directory for the checkpoint and the tensors")
    parser.add_argument("--short", action="store_true", help="the budget of the demo")
    options = parser.parse_args()
    material = prepare(report=print)
    make(material, options.out, SHORT if options.short else FULL)


if __name__ == "__main__":
    main()
