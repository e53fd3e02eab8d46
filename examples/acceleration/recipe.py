"""A channel that drafts, made and measured: texts, probe, training, engine, speed.

    python -m examples.acceleration.recipe OUT            # the full run
    python -m examples.acceleration.recipe OUT --quick    # a few texts: whether it runs at all

The channel reads the base's last state alone (``--first-layer`` is the number of layers), so a step
of it costs three small heads and no layer. It begins as the best linear probe of that state, in
closed form, and is trained from there. ``OUT/checkpoint/training_report.json`` has the acceptance
by head and domain, of the probe (``before``) and of what was trained (``results``);
``OUT/acceleration.json`` and ``.md`` the tokens a pass and the speed by domain and drafter.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.drafts import PROMPTS, measure
from benchmarks.record import write
from examples.acceleration.material import FULL, QUICK, prepare
from examples.sentiment import material as sentiment
from otter_export import Plain, load_engine

#: Three heads over the first 8,192 of 49,152 tokens, which are the frequent ones.
SIGNAL = "ahead:medusa:identity:3:8192"
SHAPE = ("--hidden-size", "128", "--init", "probe", "--adapter", "--force")
TRAINING = ("--objective", "drafts", "--epochs", "3", "--learning-rate", "0.001")


def make(out: Path, quick: bool) -> Path:
    """Everything up to the engine; returns its directory."""
    source = sentiment.prepare(report=print)
    train, test = prepare(source, out / "texts", QUICK if quick else FULL)
    checkpoint, engine = out / "checkpoint", out / "engine"
    layers = json.loads((source.base / "config.json").read_text())["num_hidden_layers"]
    place = ("--first-layer", str(layers), "--signal", SIGNAL, "--data", str(train))
    run("insert", str(source.base), str(checkpoint), *place, *SHAPE)
    steps = ("--max-steps", "2") if quick else ("--max-steps", "60")
    data = ("--data", str(train), "--test-data", str(test))
    run("train", str(checkpoint), *data, *TRAINING, *steps)
    run("build", str(checkpoint), str(engine), "--precision", "int8", "--force")
    return engine


def run(*arguments: str) -> None:
    """Run ``otter-export``; its messages go to the terminal."""
    status = subprocess.run([sys.executable, "-m", "otter_export", *arguments], check=False)
    if status.returncode:
        sys.exit(status.returncode)


def compare(directory: Path, out: Path, prompts: int, tokens: int, rounds: int) -> Sequence[Any]:
    """Speed by domain and drafter against the same engine without drafts; writes the record."""
    engine = load_engine(directory, threads=1)
    rows = [
        {"text": kind, **row}
        for kind, texts in PROMPTS.items()
        for row in measure(engine, texts[:prompts], Plain(), tokens, 1, rounds, time.process_time)
    ]
    path = write("acceleration", rows, folder=out, prompts=prompts, tokens=tokens, rounds=rounds)
    print(path.with_suffix(".md").read_text(encoding="utf-8"))
    return rows


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description="Make and measure a channel that drafts.")
    parser.add_argument("out", type=Path, help="directory for texts, checkpoint, engine, record")
    parser.add_argument("--quick", action="store_true", help="a few texts, a few tokens")
    options = parser.parse_args()
    engine = make(options.out, options.quick)
    if options.quick:
        compare(engine, options.out, prompts=1, tokens=8, rounds=1)
    else:
        compare(engine, options.out, prompts=4, tokens=48, rounds=3)


if __name__ == "__main__":
    main()
