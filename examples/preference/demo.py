"""Preference alignment: a channel learns which of two texts people like better, and ARGS uses it.

SmolLM2-135M gets a channel that is trained on pairs. The pairs are made from human ratings of movie
snippets: nobody compared two of them (examples/preference/pairs.py). Reviews are then written
plainly, by ARGS greedy and stochastic, with and without a gate and with and without drafts; two
judges that know nothing of the channel say what guidance did, and the tokens with drafts are
compared with those without.

    make preference
    python -m examples.preference.demo --quick     # tiny sizes: shows that it runs, no more
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from examples.preference import comparison, recipe
from examples.sentiment.demo import heading
from examples.sentiment.material import ROOT, prepare
from examples.sentiment.prompts import PROMPTS
from otter_export import load_engine

BUILD = ROOT / "build" / "preference"


@click.command()
@click.option("--quick", is_flag=True, help="Tiny sizes: shows that it runs, no more.")
@click.option("--out", type=click.Path(path_type=Path), help="[default: build/preference]")
def main(quick: bool, out: Path | None) -> None:
    """Run the example; everything it makes lies under --out."""
    started = time.perf_counter()
    out = out or (BUILD / "quick" if quick else BUILD)  # neither takes the other's engine
    heading("1. A base model and human ratings, from pip packages")
    material = prepare(report=click.echo)
    heading("2. A channel, trained on pairs made from these ratings, built as an int8 engine")
    length, limit = (recipe.QUICK, 60) if quick else (recipe.FULL, None)
    report = recipe.make(material, out, length, limit, click.echo)
    accuracy = report["results"]["test"]["accuracy"]
    shares = ", ".join(
        f"{value:.3f} at {share} %" for share, value in accuracy.items() if share != "end"
    )
    click.echo(f"accuracy on {report['results']['test']['items']} held-out pairs: {shares}")
    heading("3. Reviews: plain, guided, and guided with drafts")
    size = comparison.QUICK if quick else comparison.FULL
    prompts = PROMPTS[: size.prompts]
    written = comparison.write(load_engine(out / "engine"), prompts, size)
    found = comparison.compare(material.base, written)
    click.echo(comparison.quality(found))
    heading("4. What drafts change: the time, not the tokens")
    times = comparison.timed(load_engine(out / "engine", threads=1), prompts, size)
    click.echo(comparison.drafts(found, times, len(prompts)))
    data = {
        "training": {"items": report["items"], "results": report["results"]},
        "ways": found,
        "texts": {name: one.texts for name, one in written.items()},
        "drafts": times,
        "quick": quick,
        "seconds": round(time.perf_counter() - started, 1),
    }
    (out / "preference.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    click.echo(f"\n{out / 'preference.json'} holds every number; {data['seconds']:.0f} s")


if __name__ == "__main__":
    main()
