"""``otter-export build CKPT``: a checkpoint becomes an engine directory."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from otter_export import manifest as manifest_file
from otter_export.checkpoint import Checkpoint
from otter_export.cli.progress import byte_bar
from otter_export.cli.table import human_bytes, peak_memory, table
from otter_export.cli.target_options import DEFAULT_TARGET, TargetCommand, chosen_target
from otter_export.converters.target import BuildPlan, BuildRequest
from otter_export.errors import OtterError
from otter_export.output_directory import check_replaceable, output_directory


@click.command(
    "build",
    cls=TargetCommand,
    epilog="Each target has further options: otter-export build --target NAME --help",
)
@click.argument("checkpoint", metavar="CKPT", type=click.Path(path_type=Path))
@click.argument(
    "engine", metavar="[DIR]", type=click.Path(path_type=Path), required=False, default=None
)
@click.option(
    "--target", default=DEFAULT_TARGET, show_default=True, help="What to build; see `list targets`."
)
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help="Same as DIR.")
@click.option(
    "--precision", help="Of the base weights: fp32, fp16, ...  [default: the target's first]"
)
@click.option(
    "--max-seq-len", type=int, help="Longest sequence, prompt included.  [default: the target's]"
)
@click.option("--dry-run", is_flag=True, help="Show names, shapes and bytes; write nothing.")
@click.option("--force", is_flag=True, help="Replace an existing engine, after success.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def build(
    ctx: click.Context,
    /,
    checkpoint: Path,
    engine: Path | None,
    target: str,
    out: Path | None,
    precision: str | None,
    max_seq_len: int | None,
    dry_run: bool,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Build the engine DIR from the checkpoint CKPT.

    Weights are streamed in blocks: memory does not grow with the model. A killed build leaves
    nothing under DIR.
    """
    started = time.perf_counter()
    if out is not None and engine is not None and out != engine:
        raise click.UsageError(f"there are two engine directories, {engine} and --out {out}")
    out = out or engine
    if out is None and not dry_run:
        raise click.UsageError("DIR or --out DIR is needed (or --dry-run)")
    if out is not None:
        check_replaceable(out, marker=manifest_file.FILE_NAME, force=force)
    converter = chosen_target(ctx)
    request = BuildRequest(
        precision or converter.precisions[0], max_seq_len, converter.options(**options)
    )
    opened = Checkpoint.open(checkpoint)
    if not as_json:
        settings = ", ".join(_settings(request))
        click.echo(f"building {checkpoint} for target {target}: {settings}", err=True)
    plan = converter.plan(opened, request)
    if dry_run or out is None:
        _show_plan(plan, as_json)
        return
    if out.resolve() in (opened.directory.resolve(), opened.base.directory.resolve()):
        raise OtterError(f"--out {out} is the checkpoint itself; choose another directory")
    with output_directory(out, marker=manifest_file.FILE_NAME, force=force) as directory:
        with byte_bar(plan.rounds * plan.total_bytes, "building") as advance:
            manifest = plan.write(directory, advance)
        manifest.save(directory)
    _report(out, plan, manifest, time.perf_counter() - started, as_json)


def _settings(request: BuildRequest) -> Iterator[str]:
    """The resolved settings, in words."""
    yield request.precision
    for field in dataclasses.fields(request.options):  # type: ignore[arg-type]
        value = getattr(request.options, field.name)
        if isinstance(value, bool):
            yield from [] if value == field.default else [f"{field.name} {str(value).lower()}"]
        elif value is not None:
            yield f"{field.name} {value}"


def _report(
    out: Path,
    plan: BuildPlan,
    manifest: manifest_file.EngineManifest,
    seconds: float,
    as_json: bool,
) -> None:
    size = sum(file.size for file in manifest.files)
    if as_json:
        result: dict[str, Any] = {
            "engine": str(out),
            "bytes": size,
            "nodes": plan.details.get("nodes"),
            "seconds": round(seconds, 3),
            "peak_memory_bytes": peak_memory(),
            "builder_peak_memory_bytes": manifest.options.get("build_peak_memory_bytes"),
            **({"next_step": plan.details["next_step"]} if "next_step" in plan.details else {}),
        }
        click.echo(json.dumps(result))
        return
    nodes = [f"{plan.details['nodes']} nodes"] if "nodes" in plan.details else []
    memory = f"peak memory {human_bytes(peak_memory())}"
    if manifest.options.get("build_peak_memory_bytes"):
        memory += f", {human_bytes(manifest.options['build_peak_memory_bytes'])} in its builder"
    made_by = [f"by {plan.details['builder']}"] if "builder" in plan.details else []
    facts = [human_bytes(size), *nodes, *made_by, f"{seconds:.1f} s", memory]
    click.echo(f"{out}: " + ", ".join(facts))
    if "next_step" in plan.details:
        click.echo(f"next: {plan.details['next_step']}")


def _show_plan(plan: BuildPlan, as_json: bool) -> None:
    if as_json:
        weights = [
            {"name": n, "dtype": d, "shape": list(s), "bytes": b} for n, d, s, b in plan.weights
        ]
        click.echo(
            json.dumps({"weights": weights, "bytes": plan.total_bytes, "details": plan.details})
        )
        return
    rows = [(n, d, "x".join(map(str, s)), human_bytes(b)) for n, d, s, b in plan.weights]
    click.echo(table(rows, ("weight", "dtype", "shape", "size")))
    for title, specs in (("input", plan.inputs), ("output", plan.outputs)):
        click.echo()
        lines = [(s.name, s.dtype, "[" + ", ".join(map(str, s.shape)) + "]") for s in specs]
        click.echo(table(lines, (title, "dtype", "shape")))
    facts = ", ".join(_details(plan))
    click.echo(f"\n{len(plan.weights)} weights, {human_bytes(plan.total_bytes)}, {facts}")
    click.echo("nothing written")


def _details(plan: BuildPlan) -> Iterator[str]:
    """What a plan counts and decides, but for what is long or said elsewhere."""
    for name, value in plan.details.items():
        if isinstance(value, str | int) and name != "next_step":
            yield f"{name.replace('_', ' ')} {value}"
        elif isinstance(value, list) and all(isinstance(one, str) for one in value):
            yield f"{name.replace('_', ' ')} {' '.join(value)}"
