"""Three signals in one channel: a reward, an expert pair and drafts; alone, in turn and together.

    python -m benchmarks.three_signals [--steps 50] [--first-layer 24] [--hidden-size 128]

On SmolLM2-135M, one channel of one shape from one start (a probe), on the data of the three
examples: a ``value`` signal learns people's ratings of films, an ``expert`` pair insults, a
``medusa`` signal what the base goes on to write.

- *alone*: one signal and the channel learn, the other heads do not;
- *in turn*: the drafts and the channel learn, then with the channel frozen the experts, then the
  reward: what was trained keeps its metric, bit for bit;
- *together*: all three and the channel learn in one run, each step a batch of each.

A signal sees as many batches each time. The metrics are of texts that nothing was trained on; the
ratios are to the signal alone. Writes three_signals.json and three_signals.md into
benchmarks/results; a run that is under --out already is not made again.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks import record
from examples.acceleration import material as acceleration
from examples.detoxification.data import prepare as prepare_comments
from examples.sentiment.material import prepare
from examples.sentiment.recipe import run

#: In the order in which they learn in turn; the kind of each, its objective, its weight together.
SIGNALS = {
    "ahead": ("medusa:identity:3:8192", "drafts"),
    "harmless": ("expert", "experts"),
    "reward": ("value", "regression"),
}
START, TOGETHER = "start", "together"
#: Texts that the base writes to learn drafts from: how many train, and how many test.
DRAFTED = {"prose": (64, 16), "code": (32, 12), "repetitive": (16, 8)}
#: Lines that the probe is fitted on; of each signal that are tested; and neutral ones of those.
PROBED, TESTED, NEUTRAL = 1_500, 240, 60
QUICK = {"steps": 1, "batch_tokens": 64, "items": 4}


def prepare_texts(out: Path, quick: bool) -> dict[str, tuple[Path, Path]]:
    """By signal, the file that it learns from and the one that it is tested on."""
    folder = out / "texts"
    folder.mkdir(parents=True, exist_ok=True)
    rated, limit = prepare(report=print), 12 if quick else None
    tested = 6 if quick else TESTED
    sizes = acceleration.QUICK if quick else DRAFTED
    comments = prepare_comments(report=print)
    neutral = lines(comments.neutral)
    few = 2 if quick else NEUTRAL
    return {
        "ahead": acceleration.prepare(rated, folder, sizes),
        "harmless": (
            write(folder / "comments.jsonl", lines(comments.train)[:limit] + neutral[few:][:limit]),
            write(folder / "comments_test.jsonl", lines(comments.test)[:tested] + neutral[:few]),
        ),
        "reward": (
            write(folder / "rated.jsonl", lines(rated.train)[:limit]),
            write(folder / "rated_test.jsonl", lines(rated.test)[:tested]),
        ),
    }


def lines(path: Path) -> list[str]:
    """The lines of a file, with their ends."""
    return path.read_text(encoding="utf-8").splitlines(keepends=True)


def write(path: Path, some: list[str]) -> Path:
    """A file of these lines."""
    path.write_text("".join(some), encoding="utf-8")
    return path


class Runs:
    """The trainings, each in a checkpoint of its own under one directory.

    Args:
        out: The directory.
        base: What is widened.
        texts: By signal, what it learns from and what it is tested on.
        options: Of the command line.
    """

    def __init__(
        self,
        out: Path,
        base: Path,
        texts: dict[str, tuple[Path, Path]],
        options: argparse.Namespace,
    ) -> None:
        self._out, self._base, self._texts, self._options = out, base, texts, options

    def start(self) -> Path:
        """The channel that all of them begin with: a probe of all three signals."""
        checkpoint = self._out / START
        if not checkpoint.is_dir():
            o = self._options
            fitted = write(self._out / "probed.jsonl", lines(self._texts["reward"][0])[:PROBED])
            shape = {
                "--first-layer": o.first_layer,
                "--hidden-size": o.hidden_size,
                "--intermediate-size": o.hidden_size,
                "--heads": 3,
                "--attention": "shared",
                "--init": "probe",
                "--data": fitted,
            }
            signals = [f"{name}:{kind}" for name, (kind, _) in SIGNALS.items()]
            arguments = [str(part) for pair in shape.items() for part in pair]
            arguments += [part for signal in signals for part in ("--signal", signal)]
            run(["insert", str(self._base), str(checkpoint), *arguments, "--adapter"])
        return checkpoint

    def train(
        self, name: str, source: Path, learn: list[str], test: list[str], *extra: str
    ) -> tuple[Path, dict[str, Any]]:
        """Train a copy of a checkpoint; an interrupted run goes on.

        Args:
            name: Of the copy.
            source: What is copied.
            learn: Signals that learn.
            test: Signals that are tested, before and after.
            extra: More options of ``train``.

        Returns:
            The checkpoint, and by signal its test (``also_tested`` of the report).
        """
        checkpoint, o = self._out / name, self._options
        report = checkpoint / "training_report.json"
        if not checkpoint.is_dir():
            shutil.copytree(source, checkpoint, ignore=shutil.ignore_patterns("training_*"))
        if not report.is_file():
            tasks = [
                f"{s}:{SIGNALS[s][1]}:{o.reward_weight if s == 'reward' else 1}={self._texts[s][0]}"
                for s in learn
            ]
            budget = {
                "--max-steps": o.steps,
                "--epochs": 1000,
                "--batch-tokens": o.batch_tokens,
                "--max-tokens": 96,
                "--learning-rate": o.learning_rate,
                "--dtype": "auto",
                "--eval-fraction": 0.02,
                "--eval-every": max(o.steps // 2, 1),
                "--eval-items": o.items,
            }
            arguments = [part for task in tasks for part in ("--task", task)]
            arguments += [
                part
                for s in test
                for part in ("--also-test", f"{s}:{SIGNALS[s][1]}={self._texts[s][1]}")
            ]
            arguments += [str(part) for pair in budget.items() for part in pair]
            run(["train", str(checkpoint), *arguments, *extra])
        return checkpoint, json.loads(report.read_text(encoding="utf-8"))["also_tested"]

    def all(self) -> dict[str, dict[str, Any]]:
        """By way and signal its test."""
        names, start = list(SIGNALS), self.start()
        found: dict[str, dict[str, Any]] = {"alone": {}, "in turn": {}}
        for signal in names:
            checkpoint, tested = self.train(f"alone-{signal}", start, [signal], [signal])
            found["alone"] |= tested
            if signal == names[0]:
                last = checkpoint
        frozen = ("--freeze", "channel")
        for i, signal in enumerate(names[1:], start=2):
            last, tested = self.train(f"turn-{i}-{signal}", last, [signal], names[:i], *frozen)
            found["in turn"] |= tested
            if not all(tested[name]["same"] for name in names[: i - 1]):
                raise SystemExit(f"{last}: a signal changed, though the channel was frozen")
        _, found["together"] = self.train(TOGETHER, start, names, names)
        return found


def table(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each signal: its metric each way, and the ratios to the one alone."""
    rows = []
    for signal in SIGNALS:
        alone = found["alone"][signal]
        row = {"signal": signal, "metric": alone["metric"], "start": figure(alone["before"])}
        values = {way: figure(tested[signal]["after"]) for way, tested in found.items()}
        ratios = {
            f"{way} / alone": values[way] / values["alone"] if values["alone"] else None
            for way in ("in turn", "together")
        }
        rows.append({**row, **values, **ratios})
    return rows


def figure(judged: dict[str, Any]) -> float:
    """The metric as a whole: of all tokens and drafts, or of whole texts."""
    (metrics,) = (value for value in judged.values() if isinstance(value, dict))
    return float(metrics["all"] if "all" in metrics else metrics["100"])


def main() -> None:
    """Train in every way; write the record and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50, help="of each training")
    parser.add_argument("--batch-tokens", type=int, default=512, help="of each signal")
    parser.add_argument("--learning-rate", type=float, default=0.002)
    parser.add_argument("--reward-weight", type=float, default=8.0, help="of its loss, together")
    parser.add_argument("--first-layer", type=int, default=24)
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--items", type=int, default=48, help="held-out texts that choose a step")
    parser.add_argument("--out", type=Path, default=record.REPOSITORY / "build" / "three_signals")
    parser.add_argument("--quick", action="store_true", help="whether it runs at all")
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK)
    texts = prepare_texts(options.out, options.quick)
    found = Runs(options.out, prepare().base, texts, options).all()
    rows = table(found)
    record.write(
        "three_signals",
        rows,
        libraries=("torch",),
        folder=options.out if options.quick else record.RESULTS,
        settings={k: v for k, v in vars(options).items() if k not in ("out", "quick")},
        tests=found,
    )
    print(record.table(rows), end="")


if __name__ == "__main__":
    main()
