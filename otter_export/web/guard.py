"""The guard against browsers: this server's own page may call, by names that are its own.

Any page that somebody has open can make a browser send requests here. It says from where it came
(``Origin``), and by which name it calls (``Host``): a name of elsewhere that was made to lead here
("DNS rebinding") is not ours.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from otter_export.errors import OtterError
from otter_export.web.errors import error_response

#: Names of this machine for itself.
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")


class Guard:
    """An ASGI application before another.

    Args:
        app: The other.
        hosts: Names, without ports, that this server has; None: any.
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...] | None) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may come in."""
        if scope["type"] == "http" and (problem := self._problem(scope)):
            await error_response(OtterError(problem), 403)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _problem(self, scope: Scope) -> str | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if self._hosts is not None and _without_port(host) not in self._hosts:
            return f"this server answers to {', '.join(self._hosts)} alone; see --host"
        # Behind a proxy with TLS the page came by https, and the call comes by http.
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            return "only this server's own page may call from a browser"
        return None


def _without_port(host: str) -> str:
    name, _, port = host.rpartition(":")
    return name if name and port.isdecimal() else host
