"""``otter-export serve``: an engine over HTTP, with OpenAI's API and a page of coloured tokens."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import click

from otter_export.cli.engine_options import check_digest, digest, placement, server_limits
from otter_export.load import load_engine
from otter_export.serving.settings import Settings
from otter_export.web.app import Application
from otter_export.web.guard import LOOPBACK_NAMES
from otter_export.web.run import listen, run
from otter_export.web.upstream import EngineFront, Front, Upstream

_HOST = "127.0.0.1"


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--port", type=int, default=8080, show_default=True, help="0 takes a free one.")
@click.option(
    "--host",
    default=_HOST,
    show_default=True,
    help="Address to listen on. Others than this machine's own let everybody in who can reach it.",
)
@click.option("--name", help="Of the model, for clients.  [default: the directory's]")
@server_limits
@click.option(
    "--grace",
    type=click.FloatRange(0, 3600),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long requests in work may go on after Ctrl-C or SIGTERM.",
)
@click.option(
    "--triton",
    metavar="HOST:PORT",
    help="Pass requests on to tritonserver's HTTP endpoint, whose model has the engine in DIR.",
)
@click.option("--triton-model", default="otter", show_default=True, help="Name of the model there.")
@click.option("--log-requests", is_flag=True, help="A line on standard error for every request.")
@click.option("--log-prompts", is_flag=True, help="Prompts and texts are in those lines, too.")
@placement
@digest
def serve(
    directory: Path,
    port: int,
    host: str,
    name: str | None,
    grace: float,
    threads: int | None,
    provider: str | None,
    sha256: str | None,
    triton: str | None,
    triton_model: str,
    log_requests: bool,
    log_prompts: bool,
    **options: Any,
) -> None:
    """Serve the engine in DIR: OpenAI's API under /v1, and a page of coloured tokens under /."""
    given = {key: value for key, value in options.items() if value is not None}
    settings = Settings(
        log_requests=log_requests or log_prompts, log_prompts=log_prompts, **_fitting(given)
    )
    listener = listen(host, port)
    with listener:
        check_digest(directory, sha256)
        engine: Front
        upstream = None
        if triton is None:
            engine = load_engine(directory, provider=provider, threads=threads)
        else:
            engine = EngineFront(directory)
            most = settings.max_queue + settings.max_batch_size
            upstream = Upstream(engine, triton, triton_model, most)
        engine.tokenizer  # noqa: B018  a mistake in its files is told now
        resolved = directory.resolve()
        local = _is_local(host)
        application = Application(
            engine,
            settings,
            resolved.name if name is None else name,
            (str(directory), str(resolved)),
            LOOPBACK_NAMES if local else None,
            upstream,
        )
        address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        if not local:
            click.echo(
                f"warning: {host} is not this machine alone, and nobody is asked who they are; "
                "put a proxy that does in front",
                err=True,
            )
        click.echo(f"open {address} ; OpenAI's API is under {address}/v1 ; Ctrl-C stops")
        run(application, listener, grace)


def _fitting(given: dict[str, Any]) -> dict[str, Any]:
    """Settings whose defaults follow a limit that is smaller than they are."""
    defaults = Settings()
    for low, high in (("default_max_tokens", "max_tokens"), ("default_top_k", "max_candidates")):
        if high in given and low not in given:
            given[low] = min(getattr(defaults, low), max(given[high], 1))
    return given


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
