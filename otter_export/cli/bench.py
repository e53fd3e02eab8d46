"""``otter-export bench DIR``: the speed of decoding on this machine, and what limits it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from otter_export import __version__
from otter_export.cli.finite_range import FiniteRange
from otter_export.cli.progress import step_bar
from otter_export.cli.table import human_bytes, table
from otter_export.evaluation.benchmark import Plan, Way, measure
from otter_export.evaluation.benchmark_plot import plot_benchmark
from otter_export.evaluation.operator_shares import operator_shares
from otter_export.evaluation.prompts import PROMPTS
from otter_export.evaluation.reward_plot import check_plot_path
from otter_export.evaluation.step_bytes import cache_bytes, stream_bandwidth, weight_bytes
from otter_export.load import load_engine
from otter_export.manifest import EngineManifest
from otter_export.runtime.drafts.medusa import drafting
from otter_export.runtime.load import PROVIDERS, checked_threads
from otter_export.runtime.methods.args_greedy import ArgsGreedy
from otter_export.runtime.methods.experts import Experts
from otter_export.runtime.methods.plain import Plain
from otter_export.runtime.request import Request
from otter_export.runtime.scheduler.chooser import reward_signal
from otter_export.signals import Signal

#: Tokens and runs of each method, and numbers of concurrent requests.
_WHOLE = (24, 5, (2, 4, 8, 16))
_QUICK = (8, 2, (4,))
#: Tokens whose steps are profiled.
_PROFILED = 9
#: Types of operators that are printed.
_SHOWN = 8


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="May be repeated.")
@click.option("--top-k", type=int, default=8, show_default=True, help="Candidates when guided.")
@click.option("--weight", type=float, default=1.0, show_default=True, help="Of the reward.")
@click.option("--signal", help="The signal that is the reward.  [default: the engine's first]")
@click.option("--quick", is_flag=True, help="Fewer tokens, and one batch.")
@click.option(
    "--seconds",
    type=FiniteRange(0.1, 3600),
    default=5.0,
    show_default=True,
    help="Most that one run takes; each way to decode has 9, and 3 with --quick.",
)
@click.option("--threads", type=int, help="Of the CPU.  [default: OMP_NUM_THREADS, else all cores]")
@click.option("--provider", type=click.Choice(PROVIDERS), help="[default: the engine's own]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw it, too.")
def bench(
    directory: Path,
    prompts: tuple[str, ...],
    top_k: int,
    weight: float,
    signal: str | None,
    quick: bool,
    seconds: float,
    threads: int | None,
    provider: str | None,
    as_json: bool,
    plot: Path | None,
) -> None:
    """Time decoding with the engine, or checkpoint, in DIR: plain and guided, alone and together.

    Plain decoding, with the reward alongside; by args-greedy, or experts where the signal is an
    expert pair; and both with the drafts of each signal that drafts. Nothing is promised for other
    machines, prompts or weights.
    """
    # Checked for their own sake, also where no signal is a reward.
    guided = ArgsGreedy(top_k=top_k, weight=weight, signal=signal)
    tokens, rounds, batches = _QUICK if quick else _WHOLE
    if plot is not None:
        check_plot_path(plot)
    engine = load_engine(directory, provider=provider, threads=threads)
    manifest, chosen = engine.manifest, checked_threads(provider, threads)
    most = manifest.built_for.limits.max_batch_size
    sizes = tuple(size for size in batches if most is None or size <= most)
    ways = _ways(manifest, guided)
    plan = Plan(prompts or PROMPTS, ways, tokens, rounds, sizes, seconds)
    with step_bar(plan.runs, "run") as done:
        found = measure(engine, plan, done)
    report = {
        "engine": _described(directory, manifest, reward_signal(manifest, ways[0].method)),
        "machine": _machine(chosen),
        "guidance": {"method": ways[-1].method.name, "top_k": top_k, "weight": weight},
        **found,
        "operators": None,
        "floor": None,
    }
    if manifest.target == "onnx" and (provider or manifest.execution_provider) == "cpu":
        request = Request(plan.prompts[0], ways[0].method, _PROFILED)
        shares = operator_shares(directory, manifest, request, chosen)
        report["operators"] = [dataclasses.asdict(share) for share in shares]
        report["floor"] = _floor(manifest, found, tokens, chosen)
    if plot is not None:
        plot_benchmark(plot, [*report["alone"], *report["batches"]], report["operators"])
    click.echo(json.dumps(report, indent=1) if as_json else _text(report))
    if plot is not None:
        click.echo(f"plot: {plot}", err=True)


def _ways(manifest: EngineManifest, guided: ArgsGreedy) -> tuple[Way, ...]:
    """Plain, guided where a signal is a reward, and both with drafts.

    Args:
        manifest: Of the engine.
        guided: With its options, experts take the weight.
    """
    plain = Plain(signal=guided.signal)
    ways, reward = [Way("plain", plain)], reward_signal(manifest, plain)
    if reward is not None and reward.kind in Experts.kinds:
        ways.append(Way("guided", Experts(weight=guided.weight, signal=guided.signal)))
    elif reward is not None:
        ways.append(Way("guided", guided))
    drafters = [signal.name for signal in drafting(manifest)]
    ways += [Way(f"{w.name} + {name}", w.method, name) for name in drafters for w in ways]
    return tuple(ways)


def _described(directory: Path, manifest: EngineManifest, signal: Signal | None) -> dict[str, Any]:
    return {
        "directory": str(directory),
        "target": manifest.target,
        "precision": manifest.precision,
        "signal": signal.name if signal else None,
        "kind": signal.kind if signal else None,
    }


def _machine(threads: int | None) -> dict[str, Any]:
    names = ("numpy", "onnxruntime")
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": threads or os.cpu_count(),
        "versions": {
            "otter-export": __version__,
            **{name: importlib.metadata.version(name) for name in names},
        },
    }


def _floor(
    manifest: EngineManifest, found: Mapping[str, Any], tokens: int, threads: int | None
) -> dict[str, float]:
    """The bytes of a plain step of one request against what memory gives."""
    weights = weight_bytes(manifest)
    cache = cache_bytes(manifest, int(found["first_token"]["prompt_tokens"]) + tokens // 2)
    bandwidth = stream_bandwidth(threads)
    seconds = (weights + cache) / bandwidth
    return {
        "weight_bytes": weights,
        "cache_bytes": cache,
        "bytes_per_second": bandwidth,
        "seconds": seconds,
        "share": seconds / found["alone"][0]["step_seconds"],
    }


def _text(report: Mapping[str, Any]) -> str:
    engine, machine, first = report["engine"], report["machine"], report["first_token"]
    guidance = report["guidance"]
    lines = [
        f"engine  {engine['directory']}, {engine['target']}, {engine['precision']}, "
        f"signal {engine['signal']} ({engine['kind']})",
        f"on      {machine['system']}, {machine['threads']} of {machine['cores']} cores",
        f"guided  {guidance['method']}, top_k {guidance['top_k']}, weight {guidance['weight']:g}",
        f"first   token of {first['prompt_tokens']:.0f} prompt tokens in "
        f"{1e3 * first['seconds']:.0f} ms",
        "",
        _speeds([*report["alone"], *report["batches"]]),
    ]
    if report["operators"]:
        rows = [
            (o["name"], f"{o['calls']:.0f}", f"{o['share']:.1%}", f"{o['channel']:.0%}")
            for o in report["operators"][:_SHOWN]
        ]
        header = ("a plain step", "calls", "of the time", "of it the channel's")
        lines += ["", table(rows, header)]
    if report["floor"]:
        floor = report["floor"]
        lines += [
            "",
            f"reading {human_bytes(floor['weight_bytes'])} of weights and "
            f"{human_bytes(floor['cache_bytes'])} of cache at "
            f"{floor['bytes_per_second'] / 1e9:.1f} GB/s would take "
            f"{1e3 * floor['seconds']:.1f} ms: {floor['share']:.0%} of a plain step",
        ]
    return "\n".join(lines)


def _speeds(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [
        (
            row["method"],
            str(row["requests"]),
            f"{1e3 * row['step_seconds']:.1f}",
            f"{row['tokens_per_second']:.1f}",
            f"{row['speed']:.2f}",
            f"{row['rows_per_token']:.2f}",
            f"{row['outside_the_model']:.1%}",
        )
        for row in rows
    ]
    header = ("", "requests", "ms a step", "tokens/s", "/ plain", "rows a token", "outside")
    return table(cells, header)
