"""L5: nonsense and impatience: 500 malformed requests, 2,000 with random cancellation."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import http.client
import json
import random
from typing import Any

import pytest

from examples.triton_client import Response
from tests.serving.server.cases import check_answer, mixed
from tests.serving.server.running import Library, Served, check_alive, grown

pytestmark = pytest.mark.slow


def test_500_malformed_requests(served: Served, library: Library) -> None:
    """Each is refused with one clear line, and the model is as good as before."""
    from tests.serving.server import malformed

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        bodies = list(malformed.http_bodies(300, seed=5))
        refusals = list(pool.map(lambda body: refusal(served, body), bodies))
    messages = list(malformed.grpc_requests(200, seed=6))
    refusals += grpc_refusals(served, messages)
    wrong = {}
    for request, error in zip([*bodies, *messages], refusals, strict=True):
        lines = (error or "").splitlines()
        if len(lines) != 1 or len(lines[0]) > 600 or "internal error" in lines[0]:
            wrong[str(request)[:300]] = error
    assert not wrong
    check_alive(served, library)
    assert served.wait_idle()["otter_running"] == 0


def refusal(served: Served, body: bytes) -> str | None:
    """The error of a body that is sent to ``/generate``; None if it was accepted."""
    connection = http.client.HTTPConnection(served.http, timeout=30)
    with contextlib.closing(connection):
        connection.request("POST", "/v2/models/otter/generate", body)
        reply = connection.getresponse()
        answer = reply.read()
    if reply.status == 200:
        return None
    return str(json.loads(answer)["error"])


def grpc_refusals(served: Served, messages: list[Any]) -> list[str | None]:
    """The error of each message; None if it was accepted."""
    import grpc
    from tritonclient.grpc import service_pb2_grpc

    with grpc.insecure_channel(served.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        found: list[str | None] = []
        for one in messages:
            replies = list(stub.ModelStreamInfer(iter([one]), timeout=30))
            errors = [reply.error_message for reply in replies if reply.error_message]
            found.append(errors[0] if errors else None)
    return found


def test_2000_requests_with_random_cancellation_leave_no_place_taken(
    served: Served, library: Library
) -> None:
    before = served.wait_idle()
    cases = mixed(2000, seed=9, max_tokens=24)
    outcomes = asyncio.run(impatient_crowd(served, cases))
    complete = [i for i, responses in enumerate(outcomes) if responses is not None]
    # About half of the clients wait for their answer; all of those have it, whole.
    assert 600 < len(complete) < 1400
    for index in complete[::25]:
        check_answer(outcomes[index] or [], library.alone(cases[index].request))
    assert all((outcomes[i] or [{}])[-1].get("finish_reason") for i in complete)
    after = served.wait_idle()
    assert grown(before, after, "otter_rejected_total invalid") == 0
    ended = {
        name: grown(before, after, f"otter_requests_total {name}")
        for name in ("completed", "cancelled", "expired", "failed")
    }
    # Who is cancelled before the server hears of it is not counted, and who is cancelled at the
    # last token may be complete.
    assert ended["failed"] == ended["expired"] == 0
    assert ended["completed"] >= len(complete)
    assert ended["cancelled"] > 100
    assert ended["completed"] + ended["cancelled"] <= len(cases)
    check_alive(served, library)


async def impatient_crowd(served: Served, cases: list[Any]) -> list[list[Response] | None]:
    """Send all, 48 at a time; every other client goes away at a random moment (None)."""
    from examples.triton_async import AsyncClient

    draw = random.Random(10)
    plans = [(draw.random() < 0.5, draw.randint(0, 8), draw.random() * 0.05) for _ in cases]
    outcomes: list[list[Response] | None] = [None] * len(cases)
    waiting = list(range(len(cases)))

    async def one(client: AsyncClient, index: int) -> None:
        leaves, tokens, seconds = plans[index]
        stream = client.stream(cases[index].renamed(stream=True), timeout_seconds=120)
        if not leaves:
            outcomes[index] = [response async for response in stream]
            return
        # After some tokens or after some time, whichever comes first.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), contextlib.aclosing(stream):
                for _ in range(tokens):
                    if await anext(stream, None) is None:
                        break

    async def clients(client: AsyncClient) -> None:
        while waiting:
            await one(client, waiting.pop())

    async with AsyncClient(served.grpc) as client:
        await asyncio.gather(*(clients(client) for _ in range(48)))
    return outcomes
