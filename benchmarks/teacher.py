"""A reward model's scores distilled into a channel: does the channel know them, does guidance help?

    python -m benchmarks.teacher [--steps 400] [--labels 4000] [--threads 2] [--quick]

The teacher is made here: SmolLM2-135M-Instruct as a sequence classifier of transformers, whose
last layers and head learn the demo's ratings from the snippets that are kept for judges, so it saw
none of those that the channel learns from. ``otter-export label`` scores the training snippets,
``train`` teaches a fresh channel of the demo's shape, and the int8 engine continues the demo's
openings plainly and guided, sampled alike with a seed for each prompt. The teacher judges the
texts; the gain over plain has a 95 % bootstrap interval over prompts. Writes teacher.json and
teacher.md into benchmarks/results; what is under --out already is not made again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import gate, record
from examples.sentiment.comparison import TEMPERATURE
from examples.sentiment.material import Material, prepare
from examples.sentiment.prompts import PROMPTS
from examples.sentiment.recipe import TRAINING, insert_arguments, run
from otter_export import ArgsStochastic, Plain, load_engine
from otter_export.evaluation.text_metrics import bootstrap_paired_difference
from otter_export.modeling.teacher import Passage, Teacher
from otter_export.runtime.engine import Engine
from otter_export.runtime.methods.base import DecodingMethod
from otter_export.runtime.request import Result

TOP_K, SEED = 16, 2026
PREFIXES = ("25", "50", "75", "100")
#: Layers of the teacher that learn, the last ones.
TUNED_LAYERS = 4
QUICK = {"steps": 1, "labels": 40, "epochs": 1, "max_steps": 2, "prompts": 2, "tokens": 4}


def make_teacher(material: Material, out: Path, steps: int, batch: int = 16) -> Path:
    """Tune a classifier on the snippets of the judges' split; returns its directory."""
    import transformers

    directory = out / "teacher"
    if directory.is_dir():
        return directory
    lines = [json.loads(line) for line in material.probe.read_text(encoding="utf-8").splitlines()]
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(material.base)
    torch.manual_seed(SEED)
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(
        material.base, num_labels=1, dtype=torch.float32, pad_token_id=tokenizer.eos_token_id
    )
    first = model.config.num_hidden_layers - TUNED_LAYERS
    for name, parameter in model.named_parameters():
        layer = name.split(".")[2] if name.startswith("model.layers.") else None
        tuned = layer is None or int(layer) >= first
        parameter.requires_grad_(tuned and "embed_tokens" not in name)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-4)
    order = torch.randperm(len(lines))
    tokenizer.pad_token = tokenizer.eos_token
    for step in range(steps):
        chosen = [lines[int(order[(step * batch + i) % len(lines)])] for i in range(batch)]
        texts = tokenizer([one["text"] for one in chosen], return_tensors="pt", padding=True)
        wanted = torch.tensor([one["score"] for one in chosen])
        loss = torch.nn.functional.mse_loss(model(**texts).logits[:, 0], wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"teacher, step {step} of {steps}: loss {float(loss):.3f}")
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def make_engine(
    material: Material, out: Path, teacher: Path, options: argparse.Namespace
) -> tuple[Path, Any]:
    """Label, train, build; returns the engine and the training report."""
    checkpoint, engine = out / "checkpoint", out / "engine"
    for split, count in (("train", options.labels), ("test", options.labels)):
        texts = out / f"{split}.jsonl"
        lines = getattr(material, split).read_text(encoding="utf-8").splitlines(keepends=True)
        texts.write_text("".join(lines[:count]), encoding="utf-8")
        labelled = ["--data", str(texts), "--out", str(out / f"{split}-labelled.jsonl")]
        run(["label", "--teacher", str(teacher), *labelled])
    if not engine.is_dir():
        if not (checkpoint / "training_state").is_dir():
            run(insert_arguments(material, checkpoint))
        files = ["--data", str(out / "train-labelled.jsonl")]
        files += ["--test-data", str(out / "test-labelled.jsonl")]
        length = ["--epochs", str(options.epochs), "--max-steps", str(options.max_steps)]
        run(["train", str(checkpoint), *files, *TRAINING, *length])
        run(["build", str(checkpoint), str(engine), "--precision", "int8"])
    report = json.loads((checkpoint / "training_report.json").read_text(encoding="utf-8"))
    return engine, report


def measure(engine: Engine, teacher: Teacher, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Texts of each weight under the teacher, and their gain over plain decoding."""
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(options.prompts)]
    ways: dict[str, DecodingMethod] = {"plain": Plain(temperature=TEMPERATURE, top_k=TOP_K)}
    for weight in options.weights:
        ways[f"weight {weight:+g}"] = ArgsStochastic(
            top_k=TOP_K, weight=weight, temperature=TEMPERATURE
        )
    written = {
        name: gate.write_texts(engine, prompts, options.tokens, method).results
        for name, method in ways.items()
    }
    scores = {name: judged(teacher, results) for name, results in written.items()}
    return [row_of(name, own, scores["plain"]) for name, own in scores.items()]


def judged(teacher: Teacher, results: Sequence[Result]) -> list[float]:
    """The teacher's score of each whole text."""
    texts = [Passage("", r.prompt + r.text, (len(r.prompt + r.text),)) for r in results]
    return [one[0] for at in range(0, len(texts), 16) for one in teacher.score(texts[at : at + 16])]


def row_of(name: str, scores: Sequence[float], plain: Sequence[float]) -> dict[str, Any]:
    """Mean score, and the gain with its interval."""
    interval = bootstrap_paired_difference(scores, plain, seed=SEED)
    return {
        "": name,
        "teacher's score": sum(scores) / len(scores),
        "over plain": interval.mean,
        "95 %": f"{interval.low:+.3f} {interval.high:+.3f}",
    }


def main() -> None:
    """Make the teacher, distil, write and judge; write the record and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400, help="of the teacher, 16 snippets each")
    parser.add_argument("--labels", type=int, default=4000, help="training snippets")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--max-steps", type=int, default=0, help="0: no limit")
    parser.add_argument("--prompts", type=int, default=72)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--weights", type=float, nargs="+", default=[16.0, -16.0])
    parser.add_argument("--threads", type=int, help="default: OMP_NUM_THREADS, else all cores")
    parser.add_argument("--out", type=Path, default=record.REPOSITORY / "build" / "teacher")
    parser.add_argument("--quick", action="store_true", help="whether it runs at all")
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    material = prepare(report=print)
    directory = make_teacher(material, options.out, options.steps)
    engine, report = make_engine(material, options.out, directory, options)
    loaded = load_engine(engine, threads=options.threads)
    rows = measure(loaded, Teacher(directory), options)
    found = report["results"]["test"]["pearson"]
    known = [{"": "correlation with the teacher", **{f"{p} %": found[p] for p in PREFIXES}}]
    settings = {k: v for k, v in vars(options).items() if k not in ("out", "quick")}
    record.write(
        "teacher",
        rows,
        libraries=("torch", "transformers"),
        folder=options.out if options.quick else record.RESULTS,
        settings={**settings, "top_k": TOP_K, "temperature": TEMPERATURE},
        correlation={p: found[p] for p in PREFIXES},
        items=report["results"]["test"]["items"],
    )
    print(record.table(known) + "\n" + record.table(rows), end="")


if __name__ == "__main__":
    main()
