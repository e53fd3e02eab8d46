"""How a channel that drafts is made: probe or another initialisation, training, engines.

The channel reads the base's last state alone (``--first-layer`` is the number of layers), so a step
of it costs three small heads and no layer. As a probe it begins as the best linear map of that
state, in closed form, and is trained from there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.sentiment.recipe import run

#: Three heads over the first 8,192 of 49,152 tokens, which are the frequent ones.
SIGNAL = "ahead"
HEADS = f"{SIGNAL}:medusa:identity:3:8192"
WIDTH = ("--hidden-size", "128")
TRAINING = ("--objective", "drafts", "--learning-rate", "0.001", "--eval-fraction", "0.03")
FULL = ("--epochs", "1", "--max-steps", "24")
QUICK = ("--max-steps", "2")


def make(
    base: Path, texts: tuple[Path, Path], checkpoint: Path, init: str, length: Sequence[str]
) -> dict[str, Any]:
    """Insert and train; what is trained stays. Returns the training report.

    Args:
        base: Hugging Face directory.
        texts: What trains and what tests, as `examples.acceleration.material` writes them.
        checkpoint: Where to.
        init: The initialisation; a probe is fitted to the texts that train.
        length: `FULL` or `QUICK`.
    """
    report, (train, test) = checkpoint / "training_report.json", texts
    if not report.is_file():
        layers = json.loads((base / "config.json").read_text("utf-8"))["num_hidden_layers"]
        shape = ("--first-layer", str(layers), *WIDTH, "--signal", HEADS, "--init", init)
        fit = ("--data", str(train)) if init == "probe" else ()
        run(["insert", str(base), str(checkpoint), *shape, *fit, "--adapter", "--force"])
        data = ("--data", str(train), "--test-data", str(test))
        run(["train", str(checkpoint), *data, *TRAINING, *length])
    made: dict[str, Any] = json.loads(report.read_text("utf-8"))
    return made


def build(checkpoint: Path, precision: str, engine: Path) -> None:
    """Build an engine for the CPU; what is there stays."""
    if not engine.is_dir():
        run(["build", str(checkpoint), "--out", str(engine), "--precision", precision])
