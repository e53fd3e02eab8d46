"""Run the application on uvicorn until a signal ends it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator

import uvicorn

from otter_export.errors import RequestError
from otter_export.web.app import Application

#: Connections beside those of requests in work or waiting: pages, health, metrics.
_MORE_CONNECTIONS = 64
_BACKLOG = 512


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound; port 0 takes a free one.

    Raises:
        RequestError: It cannot be had.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:
        number = error.errno if isinstance(error, OSError) else None
        # asyncio and socket put the address into the text, which is here already.
        why = os.strerror(number).lower() if number and number > 0 else str(error)
        raise RequestError(
            f"cannot listen on {host}:{port}: {why}; give another --port or --host"
        ) from None


def make_server(application: Application, grace_seconds: float) -> uvicorn.Server:
    """The server; ``should_exit`` ends it.

    Args:
        application: What it serves.
        grace_seconds: How long requests in work may go on after it was told to stop.
    """
    settings = application.service.settings
    config = uvicorn.Config(
        application.asgi,
        http="h11",
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=settings.max_queue + settings.max_batch_size + _MORE_CONNECTIONS,
        timeout_graceful_shutdown=max(1, round(grace_seconds)),
    )
    return uvicorn.Server(config)


def run(application: Application, listener: socket.socket, grace_seconds: float) -> None:
    """Serve until SIGTERM or SIGINT; then what is in work may end, for a while."""
    server = make_server(application, grace_seconds)
    with _signals():
        server.run(sockets=[listener])


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Once it has stopped, uvicorn raises the signal again: that is no failure here."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopping = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: None) for number in stopping}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
