"""Detoxification: less toxic continuations, by DExperts and plainly, and what two judges say.

DExperts guides a language model by the difference of two others, one of harmless and one of toxic
text. This trains both, continues prompts that language models tend to continue toxically, and
benign ones, many times each, and prints what two judges say of it that have seen nothing of it.

    make detoxification
    python -m examples.detoxification.demo --quick     # tiny sizes: shows that it runs, no more

No text is printed or kept: the comments' licence is not stated, and the continuations are unkind.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from examples.detoxification import baseline, comparison, cost, judges
from examples.detoxification.data import Material, prepare
from examples.sentiment.material import ROOT
from otter_export.base_model import BaseModel
from otter_export.modeling.tokenization import load_tokenizer

BUILD = ROOT / "build" / "detoxification"
#: Of the experts' difference, as in DExperts' paper, and of the base's nucleus.
WEIGHT, TOP_P = 2.0, 0.9
PLAIN, DEXPERTS = "plain", "DExperts"


@click.command()
@click.option("--quick", is_flag=True, help="Tiny sizes: shows that it runs, no more.")
@click.option("--out", type=click.Path(path_type=Path), default=BUILD, show_default=True)
def main(quick: bool, out: Path) -> None:
    """Run the example; everything it makes lies under --out."""
    started = time.perf_counter()
    heading("1. Labelled comments, prompts and a base model, from pip packages")
    material = prepare(report=click.echo)
    heading("2. Two judges, and how good they are")
    found = judges.judges(material, limit=100 if quick else None)
    quality = judges.quality(found, material.test, limit=100 if quick else None)
    click.echo(judges.describe(quality))
    heading("3. DExperts' two models, fine-tuned and built as int8 graphs")
    settings = baseline.QUICK if quick else baseline.FULL
    with tqdm(total=2 * settings.tokens, desc="fine-tuning", unit="token") as bar:
        baseline.make(material.base, material.train, out, settings, bar.update)
    heading("4. Continuations")
    results = compare(material, out, comparison.QUICK if quick else comparison.FULL, found)
    heading("5. What a token costs, alone and on one thread")
    costs = measure_cost(material, out, rounds=1 if quick else 5)
    data = {
        "judges": {"auc": quality.auc, "correlation": quality.correlation},
        "comparison": results,
        "cost": costs,
        "quick": quick,
        "seconds": round(time.perf_counter() - started, 1),
    }
    (out / "detoxification.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    click.echo(f"\n{out / 'detoxification.json'} holds every number; {data['seconds']:.0f} s")


def compare(
    material: Material, out: Path, size: comparison.Size, found: dict[str, judges.Judge]
) -> dict[str, Any]:
    """Write, judge and print, for each kind of prompt."""
    base = BaseModel.open(material.base)
    tokenizer, ends = load_tokenizer(material.base), base.special_token_ids[1]
    models = baseline.load(out, threads=2)
    results = {}
    kinds = {"toxic": material.toxic[: size.toxic], "benign": material.benign[: size.benign]}
    for kind, prompts in kinds.items():
        ids = [tokenizer.encode(prompt) for prompt in prompts]
        arms = {}
        for label, used in {PLAIN: models[:1], DEXPERTS: models}.items():
            began = time.perf_counter()
            bar = tqdm(prompts, desc=label, unit="prompt", leave=False)
            written = comparison.write_by_models(
                used, tokenizer, bar, size, weight=WEIGHT, top_p=TOP_P, ends=ends
            )
            seconds = time.perf_counter() - began
            perplexity = comparison.base_perplexity(material.base, ids, written)
            arms[label] = comparison.score(written, found, perplexity, seconds)
        click.echo(f"{len(prompts)} {kind} prompts, {size.continuations} continuations of each:")
        click.echo(comparison.table(arms, PLAIN) + "\n")
        results[kind] = comparison.to_json(arms, PLAIN)
    return results


def measure_cost(material: Material, out: Path, rounds: int) -> dict[str, Any]:
    """Time and space of each way to decode; prints them."""
    models = baseline.load(out, threads=1)
    prompt = load_tokenizer(material.base).encode(material.benign[0])
    ways = {PLAIN: models[:1], DEXPERTS: models}
    runs = {
        label: cost.time_of_models(used, prompt, 32, WEIGHT, TOP_P) for label, used in ways.items()
    }
    times = cost.times(runs, PLAIN, rounds)
    extra = {PLAIN: 0, DEXPERTS: sum(cost.model_bytes(out / name) for name in ("expert", "anti"))}
    click.echo(cost.table(times, extra))
    return {"time": times, "bytes": extra}


def heading(text: str) -> None:
    """A heading between the steps."""
    click.secho(f"\n{text}", bold=True, fg="green")


if __name__ == "__main__":
    main()
