"""Distilled guidance: what a ``q_value`` signal keeps of the gain of the ``value`` it learned from.

    python -m benchmarks.distilled [--steps 150] [--alternatives 0 --alternatives 16] [--threads 1]

The demo's shipped channel is the teacher. A ``q_value`` signal is added and distilled on the demo's
training snippets, once for each number of alternatives (0: from the texts' own tokens alone); the
channel stays frozen. The int8 engines continue the demo's openings plainly, guided by the value and
guided by the student, at equal weight, sampled alike with a seed for each prompt. Two judges that
know nothing of the channel compare them (examples/sentiment/judges.py). *Kept* is the share of the
value's gain over plain. Times are CPU time with one thread, else wall time, in turns on one engine.
Writes distilled.json and distilled.md into benchmarks/results; engines that are under --out already
are not made again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import gate, record
from examples.sentiment import judges
from examples.sentiment.comparison import TEMPERATURE
from examples.sentiment.material import Material, prepare
from examples.sentiment.prompts import PROMPTS
from examples.sentiment.recipe import SHIPPED, insert_arguments, run
from otter_export import ArgsStochastic, Plain, load_engine
from otter_export.evaluation.text_metrics import bootstrap_paired_difference
from otter_export.runtime.engine import Engine
from otter_export.runtime.methods.base import DecodingMethod

STUDENT, TEACHER, PLAIN, VALUE = "next", "reward", gate.PLAIN, "value"
#: The demo's (examples/sentiment/comparison.py).
TOP_K, WEIGHT, TEMPERATURE, SEED = 16, 16.0, TEMPERATURE, 2026
JUDGES = ("vader", "probe")
#: What --quick makes of the options.
QUICK = {"steps": 1, "texts": 8, "batch_tokens": 64, "items": 2}
QUICK |= {"prompts": 2, "tokens": 4, "rounds": 1}
TRAINING = (
    *("--signal", STUDENT, "--objective", "distill", "--teacher", TEACHER),
    *("--dtype", "auto", "--epochs", "1000", "--eval-fraction", "0.03"),
)


def make(material: Material, out: Path, count: int, options: argparse.Namespace) -> Path:
    """Distil with ``count`` alternatives and build; returns the engine, beside its checkpoint."""
    root = out / f"alternatives-{count}"
    teacher, checkpoint, engine = out / "teacher", root / "checkpoint", root / "engine"
    if engine.is_dir():
        return engine
    if not teacher.is_dir():
        run([*insert_arguments(material, teacher), "--from", str(SHIPPED)])
    if not (checkpoint / "training_state").is_dir():
        root.mkdir(parents=True, exist_ok=True)
        run(
            [
                "add-signal",
                str(teacher),
                str(checkpoint),
                "--signal",
                f"{STUDENT}:q_value",
                "--force",
            ]
        )
    budget = {
        "--alternatives": count,
        "--max-steps": options.steps,
        "--batch-tokens": options.batch_tokens,
        "--learning-rate": options.learning_rate,
        "--eval-every": max(options.steps // 3, 1),
        "--eval-items": options.items,
    }
    numbers = [str(part) for pair in budget.items() for part in pair]
    texts = out / "texts.jsonl"
    lines = material.train.read_text(encoding="utf-8").splitlines(keepends=True)
    texts.write_text("".join(lines[: options.texts]), encoding="utf-8")
    run(["train", str(checkpoint), "--data", str(texts), *TRAINING, *numbers])
    run(["build", str(checkpoint), str(engine), "--precision", "int8"])
    return engine


def methods() -> dict[str, DecodingMethod]:
    """Plain decoding and both kinds of guidance, which sample alike."""
    guided = {
        name: ArgsStochastic(top_k=TOP_K, weight=WEIGHT, temperature=TEMPERATURE, signal=signal)
        for name, signal in ((VALUE, TEACHER), (STUDENT, STUDENT))
    }
    return {PLAIN: Plain(temperature=TEMPERATURE, top_k=TOP_K), **guided}


def measure(engines: dict[int, Engine], material: Material, options: argparse.Namespace) -> Any:
    """Rows of the table: plain, value, and a student for each number of alternatives."""
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(options.prompts)]
    ways = methods()
    last = next(reversed(engines.values()))
    arms = {name: (last, ways[name]) for name in (PLAIN, VALUE)}
    arms |= {name_of(count): (engine, ways[STUDENT]) for count, engine in engines.items()}
    texts = {}
    for name, (engine, method) in arms.items():
        texts[name] = gate.write_texts(engine, prompts, options.tokens, method).texts
    scores = {name: vars(said) for name, said in judges.judge(material.base, texts).items()}
    found = gate.speed(last, ways, 1, options.rounds, options.threads)
    speeds = {name: found[VALUE if name == VALUE else STUDENT] for name in texts} | {
        PLAIN: found[PLAIN]
    }
    return [row_of(name, scores, speeds[name]) for name in texts]


def name_of(count: int) -> str:
    """How a student is called in the table."""
    return f"q_value, {count} alternatives"


def row_of(name: str, scores: dict[str, Any], speed: dict[str, Any]) -> dict[str, Any]:
    """What judges say of one way to decode, and its time for a token over plain decoding's."""
    row: dict[str, Any] = {"guided by": name}
    for one in JUDGES:
        interval = bootstrap_paired_difference(scores[name][one], scores[PLAIN][one], seed=SEED)
        full = float((scores[VALUE][one] - scores[PLAIN][one]).mean())
        row |= {
            one: float(scores[name][one].mean()),
            f"{one} gain": interval.mean,
            f"{one} 95 %": f"{interval.low:+.2f} {interval.high:+.2f}",
            f"{one} kept": interval.mean / full if full else None,
        }
    return {**row, "speed / plain": speed["ratio"], "ms a token": speed["median"]}


def learned(engine: Path) -> dict[str, Any]:
    """Held-out correlations of the student beside an engine, and what they took."""
    report = json.loads((engine.with_name("checkpoint") / "training_report.json").read_text())
    return {
        "held out": report["results"]["held_out"]["pearson"],
        "before": report["before"]["pearson"],
        "best step": report["best_step"],
        "seconds": report["seconds"],
    }


def main() -> None:
    """Distil, write, judge and time; write the record and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alternatives", type=int, action="append", help="default: 0 and 16")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--texts", type=int, help="snippets that are read; default: all")
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--learning-rate", type=float, default=0.0003)
    parser.add_argument("--items", type=int, default=96, help="held-out snippets that are judged")
    parser.add_argument("--prompts", type=int, default=72)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: OMP_NUM_THREADS, else all cores")
    parser.add_argument("--out", type=Path, default=record.REPOSITORY / "build" / "distilled")
    parser.add_argument("--quick", action="store_true", help="whether it runs at all")
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK)
    material = prepare(report=print)
    counts = options.alternatives or ([4] if options.quick else [0, 16])
    made = {count: make(material, options.out, count, options) for count in counts}
    engines = {count: load_engine(path, threads=options.threads) for count, path in made.items()}
    rows = measure(engines, material, options)
    settings = {k: v for k, v in vars(options).items() if k not in ("out", "quick")}
    record.write(
        "distilled",
        rows,
        libraries=("torch", "vaderSentiment"),
        folder=options.out if options.quick else record.RESULTS,
        settings={**settings, "weight": WEIGHT, "top_k": TOP_K, "temperature": TEMPERATURE},
        learned={str(count): learned(path) for count, path in made.items()},
    )
    print(record.table(rows), end="")


if __name__ == "__main__":
    main()
