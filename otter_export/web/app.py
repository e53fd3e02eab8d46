"""The application: OpenAI's paths, the page, and what operators ask for (docs/serving.md)."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from otter_export.errors import EngineError, OtterError
from otter_export.quoting import quoted
from otter_export.runtime.methods import METHODS
from otter_export.runtime.request import Result, TokenEvent
from otter_export.serving.settings import Settings
from otter_export.web.answers import Answers, ChatAnswers
from otter_export.web.body import Call, chat_call, completion_call, read_object
from otter_export.web.errors import StatusError, error_response, status_of
from otter_export.web.guard import Guard
from otter_export.web.prometheus import PrometheusText
from otter_export.web.reply import Reply, ending
from otter_export.web.service import Scheduling, Service
from otter_export.web.upstream import Front

PAGE = Path(__file__).with_name("page.html")
#: For a whole body to arrive.
BODY_SECONDS = 20.0
_PAGE_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; connect-src 'self'; "
        "script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
    ),
    "X-Content-Type-Options": "nosniff",
}


class Application:
    """The handlers, and what they share.

    Args:
        engine: From `load_engine`; nothing else may use it. Its manifest and its tokenizer are
            enough where there is a scheduler.
        settings: Limits and defaults; those that the engine cannot keep are tightened.
        name: The model's, for clients.
        private: Directories that clients do not hear of.
        hosts: Names under which browsers may call; None: any.
        scheduler: Does the work; None: one of its own.

    Attributes:
        service: The engine at work.
        asgi: The ASGI application.
    """

    def __init__(
        self,
        engine: Front,
        settings: Settings,
        name: str,
        private: tuple[str, ...] = (),
        hosts: tuple[str, ...] | None = None,
        scheduler: Scheduling | None = None,
    ) -> None:
        self.service = Service(engine, settings.fitted(engine.manifest), scheduler)
        self._name = name
        self._private = private
        self._created = int(time.time())
        self._sink = PrometheusText()
        app = Starlette(
            routes=[
                Route("/", self.page, methods=["GET"]),
                Route("/health", self.health, methods=["GET"]),
                Route("/metrics", self.metrics, methods=["GET"]),
                Route("/v1/models", self.models, methods=["GET"]),
                Route("/v1/models/{model:path}", self.model, methods=["GET"]),
                Route("/v1/completions", self.completions, methods=["POST"]),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
            ],
            exception_handlers={
                HTTPException: self._http_error,
                OtterError: self._error,
                Exception: self._unexpected,
            },
            lifespan=self._lifespan,
        )
        self.asgi = Guard(app, hosts)

    async def page(self, request: HttpRequest) -> Response:
        """The live page."""
        return HTMLResponse(PAGE.read_bytes(), headers=_PAGE_HEADERS)

    async def health(self, request: HttpRequest) -> Response:
        """Whether requests are taken, and how many are in work."""
        stats = self.service.scheduler.stats
        counts = {"queued": stats.queued, "running": stats.prefilling + stats.running}
        return JSONResponse({"status": "ok", **counts})

    async def metrics(self, request: HttpRequest) -> Response:
        """For Prometheus."""
        self.service.metrics.publish(self.service.scheduler.stats, self._sink)
        return PlainTextResponse(self._sink.text(), media_type="text/plain; version=0.0.4")

    async def models(self, request: HttpRequest) -> Response:
        """The one model that there is."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: HttpRequest) -> Response:
        """The model by its name."""
        self._check_model(request.path_params["model"])
        return JSONResponse(self._model())

    async def completions(self, request: HttpRequest) -> Any:
        """A text that is gone on with."""
        body = read_object(await self._body(request))
        read = functools.partial(completion_call, body, self.service.settings)
        return await self._answer(request, body, read, Answers)

    async def chat(self, request: HttpRequest) -> Any:
        """A chat's next message."""
        body = read_object(await self._body(request))
        tokenizer = self.service.engine.tokenizer
        read = functools.partial(chat_call, body, self.service.settings, tokenizer)
        return await self._answer(request, body, read, ChatAnswers)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.service.start()
        try:
            yield
        finally:
            await asyncio.to_thread(self.service.close)

    async def _body(self, request: HttpRequest) -> bytes:
        """The body, of bounded size and within bounded time."""
        most = 2 * self.service.settings.max_prompt_bytes
        length = request.headers.get("Content-Length", "0")
        content = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                # A client that says how much comes is answered before it comes.
                if not length.isdecimal() or len(length) > 15 or int(length) > most:
                    raise StatusError(413, f"a body may have at most {most} bytes")
                async for part in request.stream():
                    content += part
                    if len(content) > most:
                        raise StatusError(413, f"a body may have at most {most} bytes")
        except TimeoutError:
            raise StatusError(408, f"the body took longer than {BODY_SECONDS:g} seconds") from None
        return bytes(content)

    async def _answer(
        self,
        request: HttpRequest,
        body: Mapping[str, Any],
        read: Callable[[], Call],
        form: type[Answers],
    ) -> Any:
        if "model" in body and body["model"] is not None:
            self._check_model(body["model"])
        call, stream = await self.service.submit(read)
        most = self.service.settings.max_candidates if call.served.return_candidates else 0
        answers = form(self._name, self.service.engine.tokenizer, most)
        if call.served.stream:
            return Reply(stream, answers, call.include_usage, self._private)
        async with ending(stream, request.receive):
            try:
                events = [event async for event in stream.events()]
            except OtterError as error:
                return error_response(error, status_of(error, accepted=True), *self._private)
        *tokens, result = events
        assert isinstance(result, Result)  # it comes last
        return JSONResponse(answers.whole([t for t in tokens if isinstance(t, TokenEvent)], result))

    def _check_model(self, name: object) -> None:
        if name != self._name:
            message = f"there is no model {quoted(name)}; it is {quoted(self._name)}"
            raise StatusError(404, message, "model")

    def _model(self) -> dict[str, Any]:
        manifest = self.service.engine.manifest
        scoring = [s for s in manifest.signals if s.kind != "medusa"]
        return {
            "id": self._name,
            "object": "model",
            "created": self._created,
            "owned_by": "otter-export",
            "otter": {
                "signals": [{"name": s.name, "kind": s.kind, "bounds": s.bounds} for s in scoring],
                "methods": list(METHODS),
                "max_sequence_length": manifest.max_sequence_length,
                "max_tokens": self.service.settings.max_tokens,
                "max_candidates": self.service.settings.max_candidates,
                "chat": self.service.engine.tokenizer.chat_template is not None,
            },
        }

    async def _error(self, request: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, OtterError)
        return error_response(error, status_of(error), *self._private)

    async def _http_error(self, request: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = f"{error.detail} ({request.method})"
        return error_response(OtterError(what), error.status_code)

    async def _unexpected(self, request: HttpRequest, error: Exception) -> Response:
        kind = type(error).__name__
        return error_response(EngineError(f"internal error ({kind}); see the server's log"), 500)
