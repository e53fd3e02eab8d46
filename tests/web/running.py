"""A server in this process, on a thread and a loop of its own, and plain ways to call it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from otter_export.runtime.scheduler import Stats
from otter_export.serving.settings import Settings
from otter_export.web.app import Application
from otter_export.web.guard import LOOPBACK_NAMES
from otter_export.web.run import listen, make_server
from otter_export.web.service import Scheduling
from otter_export.web.upstream import Front

NAME = "otter"


class Server:
    """One that runs.

    Args:
        application: What it serves.
        port: Where.
    """

    def __init__(self, application: Application, port: int) -> None:
        self.application = application
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.loop: asyncio.AbstractEventLoop | None = None

    @property
    def stats(self) -> Stats:
        return self.application.service.scheduler.stats

    def call(
        self, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and JSON; a body that is no bytes is sent as JSON."""
        status, content, _ = self.raw(path, body, headers)
        return status, json.loads(content)

    def raw(
        self, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, Any]:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, 60)) as link:
            content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            link.request("GET" if body is None else "POST", path, content, headers or {})
            reply = link.getresponse()
            return reply.status, reply.read(), reply.headers

    def events(self, path: str, body: dict[str, Any]) -> list[Any]:
        """The pieces of a stream; the last is ``"[DONE]"``."""
        status, content, headers = self.raw(path, {**body, "stream": True})
        assert status == 200, content
        assert headers["Content-Type"] == "text/event-stream"
        parts = content.decode().removesuffix("\n\n").split("\n\n")
        texts = [part.removeprefix("data: ") for part in parts]
        return [text if text == "[DONE]" else json.loads(text) for text in texts]

    def idle(self) -> Stats:
        """Wait until nothing is left."""
        wait_for(lambda: self.stats.queued + self.stats.prefilling + self.stats.running == 0)
        return self.stats

    def tasks(self) -> set[str]:
        """Names of the loop's tasks but for the server's own."""

        async def names() -> set[str]:
            own = asyncio.current_task()
            return {str(t.get_coro()) for t in asyncio.all_tasks() if t is not own}

        assert self.loop is not None
        return asyncio.run_coroutine_threadsafe(names(), self.loop).result(10)


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)


@contextlib.contextmanager
def serving(
    engine: Front, grace: float = 1.0, scheduler: Scheduling | None = None, **settings: Any
) -> Iterator[Server]:
    """Serve an engine for as long as the block runs."""
    options = Settings(**{"log_requests": False, **settings})
    application = Application(engine, options, NAME, hosts=LOOPBACK_NAMES, scheduler=scheduler)
    with listen("127.0.0.1", 0) as listener:
        server = Server(application, listener.getsockname()[1])
        uvicorn = make_server(application, grace)

        async def main() -> None:
            server.loop = asyncio.get_running_loop()
            await uvicorn.serve(sockets=[listener])

        thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
        thread.start()
        wait_for(lambda: uvicorn.started)
        try:
            yield server
        finally:
            uvicorn.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
