"""L5: whoever reaches the ports gets answers, and no say over the server: no code, files or memory.

The Python backend takes a model's source from a load request, so a client that may load models runs
code as the server's user.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from examples import triton_client
from otter_export.errors import OtterError
from tests.serving.server.cases import CASES, check_answer
from tests.serving.server.conftest import IMPATIENT
from tests.serving.server.running import (
    CONTROL_KEY,
    LIFETIME_SECONDS,
    Library,
    Served,
    check_alive,
    live_page,
    ready,
)
from tools.tritonserver.server import (
    CONTROL_HEADER,
    CONTROL_VARIABLE,
    HOST,
    control_options,
    start,
)

pytestmark = pytest.mark.slow

#: A model without tensors; Triton asks for no more.
_CONFIG = json.dumps({"backend": "python", "max_batch_size": 0, "input": [], "output": []})
_RIGHT = {CONTROL_HEADER: CONTROL_KEY}
#: What a client without the key may send; the last two as a page in a browser would.
_STRANGERS: list[dict[str, str]] = [
    {},
    {CONTROL_HEADER: "another-key-of-these"},
    {CONTROL_HEADER: ""},
    {"Origin": "http://evil.test", "Content-Type": "text/plain"},
    {"Host": "evil.test", "Origin": "http://evil.test", "Content-Type": "text/plain"},
]


@pytest.fixture(scope="module")
def fixed(repository: Path, engine_directory: Path) -> Iterator[Served]:
    """A server as the documented command starts it: no key, so no control."""
    log = repository.with_name("fixed.log")
    with start(repository, log, lifetime_seconds=LIFETIME_SECONDS, arguments=[IMPATIENT]) as server:
        yield Served(server, repository, engine_directory)


@pytest.fixture(params=["no key", "key"])
def guarded(request: pytest.FixtureRequest) -> Served:
    """Either kind of server."""
    served: Served = request.getfixturevalue("fixed" if request.param == "no key" else "served")
    return served


def post(served: Served, path: str, fields: Any, headers: dict[str, str]) -> tuple[int, str]:
    """Status and body of a POST."""
    connection = http.client.HTTPConnection(served.http, timeout=30)
    with contextlib.closing(connection):
        connection.request("POST", path, json.dumps(fields), headers)
        reply = connection.getresponse()
        return reply.status, reply.read().decode()


def source(marker: Path) -> bytes:
    """A model's source that leaves a file where it ran."""
    return f"open({str(marker)!r}, 'w').close()\nclass TritonPythonModel: pass\n".encode()


def load_by_http(served: Served, code: bytes, headers: dict[str, str]) -> int:
    encoded = base64.b64encode(code).decode()
    fields = {"parameters": {"config": _CONFIG, "file:1/model.py": encoded}}
    return post(served, "/v2/repository/models/by_http/load", fields, headers)[0]


def load_by_grpc(served: Served, code: bytes, headers: dict[str, str]) -> str:
    """What is wrong, or an empty text."""
    from tritonclient import grpc
    from tritonclient.utils import InferenceServerException

    prefixed = {
        f"triton-grpc-protocol-{name}": value
        for name, value in headers.items()
        if name == CONTROL_HEADER
    }
    with grpc.InferenceServerClient(served.grpc) as client:
        try:
            client.load_model(
                "by_grpc", headers=prefixed, config=_CONFIG, files={"file:1/model.py": code}
            )
        except InferenceServerException as error:
            return str(error)
    return ""


def test_a_stranger_cannot_load_code(guarded: Served, tmp_path: Path, library: Library) -> None:
    code = source(tmp_path / "it ran")
    for headers in _STRANGERS:
        assert load_by_http(guarded, code, headers) == 403
        assert "restricted" in load_by_grpc(guarded, code, headers)
        assert post(guarded, "/v2/repository/models/otter/unload", {}, headers)[0] == 403
        assert post(guarded, "/v2/repository/index", {}, headers)[0] == 403
    assert not list(tmp_path.iterdir())
    check_alive(guarded, library)


def test_without_a_key_not_even_the_owner_can(fixed: Served, tmp_path: Path) -> None:
    code = source(tmp_path / "it ran")
    assert load_by_http(fixed, code, _RIGHT) == 403
    assert "restricted" in load_by_grpc(fixed, code, _RIGHT)
    assert not list(tmp_path.iterdir())


def test_the_key_is_all_that_is_between(served: Served, tmp_path: Path) -> None:
    """The same requests with the key run the code: what the others prove is the key's doing."""
    assert load_by_http(served, source(tmp_path / "http"), _RIGHT) != 403
    assert "restricted" not in load_by_grpc(served, source(tmp_path / "grpc"), _RIGHT)
    assert {path.name for path in tmp_path.iterdir()} == {"http", "grpc"}
    for name in ("by_http", "by_grpc"):
        post(served, f"/v2/repository/models/{name}/unload", {}, _RIGHT)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("systemsharedmemory/region/any/register", {"key": "/any", "offset": 0, "byte_size": 64}),
        ("cudasharedmemory/region/any/register", {"raw_handle": {"b64": ""}, "byte_size": 64}),
        ("trace/setting", {"trace_file": "/any", "trace_level": ["TIMESTAMPS"]}),
        ("logging", {"log_file": "/any", "log_verbose_level": 3}),
    ],
)
def test_memory_and_files_are_not_for_clients(
    guarded: Served, path: str, fields: dict[str, Any]
) -> None:
    for headers in _STRANGERS:
        assert post(guarded, f"/v2/{path}", fields, headers)[0] == 403


def test_it_listens_on_loopback_only(guarded: Served) -> None:
    """127.0.0.2 is this machine too, and leads to a socket that listens on all addresses."""
    ports = guarded.server.ports
    for port in (ports.http, ports.grpc, ports.metrics):
        socket.create_connection((HOST, port), timeout=5).close()
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.2", port), timeout=5)


def test_brackets_reach_the_server_only_without_the_limit_in_front(
    repository: Path, engine_directory: Path, library: Library
) -> None:
    """One body of them ends tritonserver 24.10; docs/security.md says so."""
    log = repository.with_name("brackets.log")
    case = CASES["guided"]
    with start(repository, log, lifetime_seconds=LIFETIME_SECONDS, arguments=[IMPATIENT]) as server:
        served = Served(server, repository, engine_directory)
        with live_page(served.http) as address:
            page = address.removeprefix("http://")
            for body in (b"[" * 200_000, b"[" * 65_000, b'{"text_input":' + b"[" * 65_000):
                assert status_of(page, body) in (400, 413)
            # As long as the page lets through, and straight to the server.
            status_of(served.http, b"[" * 65_536, "/v2/models/otter/generate")
            assert ready(served)
            fields = case.renamed(stream=True)
            connection = http.client.HTTPConnection(page, timeout=30)
            with contextlib.closing(connection):
                connection.request("POST", "/generate_stream", json.dumps(fields))
                events = connection.getresponse().read().splitlines()
        answers = [json.loads(e.removeprefix(b"data:")) for e in events if e]
        check_answer(answers, library.alone(case.request))
        with pytest.raises((OSError, http.client.HTTPException)):
            status_of(served.http, b"[" * 200_000, "/v2/models/otter/generate")
        with pytest.raises(triton_client.ServerError):
            triton_client.generate(served.http, case.fields, timeout_seconds=10)


def status_of(address: str, body: bytes, path: str = "/generate_stream") -> int:
    """Status of a POST."""
    connection = http.client.HTTPConnection(address, timeout=30)
    with contextlib.closing(connection):
        connection.request("POST", path, body)
        return connection.getresponse().status


@pytest.mark.parametrize("key", ["", "short", "a key with spaces", "k" * 129, "k" * 16 + ",a=b"])
def test_a_key_that_is_none_is_refused(key: str) -> None:
    with pytest.raises(OtterError, match=f"{CONTROL_VARIABLE} must have 16 to 128"):
        control_options(key)
