"""The main job, end to end, on a real model: checkpoint, engines, reward-guided reviews, judges.

SmolLM2-135M gets a channel that predicts the sentiment of a movie review, is built into fp32 and
int8 engines, verified, and writes reviews with and without guidance. Two judges that know nothing
of the channel say whether the guidance worked.

    make demo               the shipped channel
    make demo TRAIN=1       trains a channel anew first
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from examples.sentiment import agreement, comparison, recipe
from examples.sentiment.material import ROOT, Material, prepare

BUILD = ROOT / "build" / "demo"
#: Held-out snippets that the demo reads (of 814, to save time; all are in training_report.json).
HELD_OUT = 400


@click.command()
@click.option(
    "--train", is_flag=True, help="Train the channel anew instead of using the shipped one."
)
@click.option("--out", type=click.Path(path_type=Path), default=BUILD, show_default=True)
@click.option("--max-tokens", type=click.IntRange(1), default=40, show_default=True)
@click.option("--prompts", "count", type=click.IntRange(1), default=36, show_default=True)
def main(train: bool, out: Path, max_tokens: int, count: int) -> None:
    """Run the demo; everything it makes lies under --out."""
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    heading("1. A real base model and human ratings, from pip packages")
    material = prepare(report=click.echo)
    heading("2. An Otter checkpoint: SmolLM2-135M with a channel that predicts sentiment")
    checkpoint = make_checkpoint(material, out, train)
    heading("3. Does the reward agree with people? Held-out snippets that nothing was trained on")
    with tqdm(total=HELD_OUT, desc="reading snippets", leave=False) as bar:
        correlations = agreement.agreement(checkpoint, material.test, HELD_OUT, bar.update)
    click.echo(agreement.table(correlations))
    heading("4. Engines: fp32 and int8, and their parity with the torch reference")
    engines = build_engines(checkpoint, out)
    heading("5. Reviews: guided, unguided, and guided the other way")
    results = comparison.compare(engines["int8"], material, count=count, max_tokens=max_tokens)
    click.echo(comparison.report(results))
    comparison.plot(results, out / "rewards.png")
    data = {
        "agreement": correlations,
        "comparison": comparison.to_json(results),
        "seconds": round(time.perf_counter() - started, 1),
    }
    (out / "demo.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    click.echo(
        f"\n{out / 'rewards.png'} draws the rewards, {out / 'demo.json'} holds every number."
    )
    click.echo(f"done in {data['seconds']:.0f} s. Try it yourself:")
    program = shown(Path(sys.executable).with_name("otter-export"))
    click.echo(
        f"  {program} generate {shown(engines['int8'])} "
        f'--prompt "The movie was" --weight {comparison.WEIGHT:g}'
    )
    click.echo("or watch it write in your browser, coloured by the reward:")
    click.echo(f"  {program} serve {shown(engines['int8'])}")


def make_checkpoint(material: Material, out: Path, train: bool) -> Path:
    """Insert the channel; overlay the shipped tensors, or train."""
    checkpoint = out / "checkpoint"
    inserting = recipe.insert_arguments(material, checkpoint)
    if train:
        run(*inserting)
        run(*recipe.train_arguments(material, checkpoint, recipe.SHORT))
    else:
        run(*inserting, "--from", str(recipe.SHIPPED))
    run("inspect", str(checkpoint))
    return checkpoint


def build_engines(checkpoint: Path, out: Path) -> dict[str, Path]:
    """Build and verify one engine for each precision."""
    engines = {}
    for precision in ("fp32", "int8"):
        engine = engines[precision] = out / f"engine-{precision}"
        common = ["--target", "onnx", "--precision", precision]
        run("build", str(checkpoint), *common, "--out", str(engine), "--force")
        run("verify", str(engine), "--checkpoint", str(checkpoint), "--quick")
    return engines


def run(*arguments: str) -> None:
    """Run one otter-export command, as a user would, and show it."""
    program = Path(sys.executable).with_name("otter-export")
    click.secho("$ otter-export " + " ".join(shown(a) for a in arguments), bold=True)
    done = subprocess.run([str(program), *arguments], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def shown(argument: Any) -> str:
    """An argument as typed in a shell, paths relative to the repository."""
    text = str(argument)
    root = f"{ROOT}/"
    return shlex.quote(text.removeprefix(root))


def heading(text: str) -> None:
    """A heading between the steps."""
    click.secho(f"\n{text}", bold=True, fg="green")


if __name__ == "__main__":
    main()
