"""The reply to one call that streams: server-sent events, for as long as its client takes them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

from starlette.types import Receive, Scope, Send

from otter_export.errors import OtterError
from otter_export.runtime.request import TokenEvent
from otter_export.web.answers import Answers
from otter_export.web.errors import error_object, status_of
from otter_export.web.service import EventStream

#: For a client to take a piece.
TAKE_SECONDS = 60.0


class Reply:
    """A stream of server-sent events: a piece for each token, at last ``[DONE]``.

    Args:
        stream: The call.
        answers: Make the pieces.
        include_usage: Whether the last piece has the numbers of tokens.
        private: Directories that clients do not hear of.
    """

    def __init__(
        self,
        stream: EventStream,
        answers: Answers,
        include_usage: bool,
        private: tuple[str, ...],
    ) -> None:
        self._stream = stream
        self._answers = answers
        self._include_usage = include_usage
        self._private = private

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; when the client goes away, or does not take it, the call ends."""
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
        async with ending(self._stream, receive):
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            # Without its end, the server closes the connection.
            with contextlib.suppress(TimeoutError):
                async for piece in self._pieces():
                    async with asyncio.timeout(TAKE_SECONDS):
                        content = f"data: {piece}\n\n".encode()
                        message = {"type": "http.response.body", "body": content, "more_body": True}
                        await send(message)
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pieces(self) -> AsyncIterator[str]:
        first = True
        try:
            async for event in self._stream.events():
                if isinstance(event, TokenEvent):
                    yield json.dumps(self._answers.token(event, first))
                    first = False
                    continue
                if first:
                    yield json.dumps(self._answers.nothing(event))
                if self._include_usage:
                    yield json.dumps(self._answers.last(event))
        except OtterError as error:
            status = status_of(error, accepted=True)
            yield json.dumps(error_object(error, status, *self._private))
        yield "[DONE]"


@contextlib.asynccontextmanager
async def ending(stream: EventStream, receive: Receive) -> AsyncIterator[None]:
    """End a call when its client goes away, or the block ends in whatever way."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        stream.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        stream.cancel()
