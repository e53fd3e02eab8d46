"""``otter-export triton ENGINE``: a model repository for Triton Inference Server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from otter_export.cli.engine_options import placement, server_limits
from otter_export.cli.progress import byte_bar
from otter_export.cli.table import human_bytes
from otter_export.converters.triton.repository import (
    CONTAINER,
    MARKER,
    plan_repository,
    write_repository,
)
from otter_export.errors import OtterError
from otter_export.output_directory import check_replaceable, output_directory


@click.command("triton")
@click.argument("engine", metavar="ENGINE", type=click.Path(path_type=Path))
@click.option(
    "--out",
    metavar="MODEL_REPOSITORY",
    type=click.Path(path_type=Path),
    required=True,
    help="Directory for tritonserver --model-repository.",
)
@click.option("--name", default="otter", show_default=True, help="Name of the model.")
@click.option(
    "--instances", type=int, default=1, show_default=True, help="Processes, each with the engine."
)
@server_limits
@placement
@click.option("--log-prompts", is_flag=True, help="Prompts and texts go into the server's log.")
@click.option("--link", is_flag=True, help="Hard links to the engine's files instead of copies.")
@click.option("--force", is_flag=True, help="Replace an existing repository, after success.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def triton(
    engine: Path,
    out: Path,
    name: str,
    instances: int,
    link: bool,
    force: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Write a Triton model repository that serves the engine in ENGINE.

    All that the server needs is in it: the engine, the Python model, the part of otter-export that
    drives the engine, and a README with commands.
    """
    check_replaceable(out, marker=MARKER, force=force)
    plan = plan_repository(engine, name=name, instances=instances, link=link, **settings)
    if out.resolve() == engine.resolve() or engine.resolve() in out.resolve().parents:
        raise OtterError(f"--out {out} is inside the engine; choose another directory")
    with (
        output_directory(out, marker=MARKER, force=force) as directory,
        byte_bar(plan.total_bytes, "copying the engine") as advance,
    ):
        write_repository(plan, directory, advance)
    if as_json:
        result = {"repository": str(out), "model": name, "bytes": plan.total_bytes}
        click.echo(json.dumps(result))
        return
    click.echo(
        f"{out}: model {name}, {human_bytes(plan.total_bytes)} of engine; {out / 'README.md'} has "
        f"the commands, for {CONTAINER} and without a container"
    )
