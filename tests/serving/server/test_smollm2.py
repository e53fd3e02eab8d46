"""L5: the real base, SmolLM2-135M-Instruct, served: real text, alone and beside others."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from examples.sentiment import material
from examples.triton_client import Response
from otter_export import ArgsGreedy, ArgsStochastic, Plain, load_engine
from otter_export.errors import OtterError
from tests import built, tiny
from tests.serving.server.cases import Case, case, check_answer
from tests.serving.server.conftest import command
from tests.serving.server.running import LIFETIME_SECONDS, Library
from tools.tritonserver.server import HOST, start

pytestmark = pytest.mark.slow

CASES = (
    case(
        "The film was a triumph — “from its first scene” 🎬",
        ArgsGreedy(weight=4.0),
        {"reward_weight": 4.0},
        max_tokens=12,
    ),
    case(
        "Translate to Japanese: Good morning! ->",
        ArgsStochastic(weight=2.0, temperature=1.2),
        {"method": "args-stochastic", "reward_weight": 2.0, "temperature": 1.2},
        max_tokens=12,
        seed=11,
    ),
    case("One, two, three,", Plain(), {"method": "plain"}, max_tokens=16, stop=("six", "seven")),
)


@pytest.fixture(scope="module")
def engine(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An fp32 engine with a random channel."""
    try:
        base = material.prepare().base
    except OtterError as error:
        pytest.skip(f"the real base is not at hand: {error}")
    root = tmp_path_factory.mktemp("smollm2")
    tiny.write_checkpoint(root / "ck", base=base, adapter=True, signals=(tiny.REWARD,), heads=3)
    built.randomize(root / "ck", gain=0.2)
    command("build", root / "ck", "--target", "onnx", "--out", root / "engine")
    return root / "engine"


def test_the_answers_are_the_librarys(engine: Path) -> None:
    repository = engine.with_name("repository")
    command("triton", engine, "--out", repository, "--link")
    library = Library(load_engine(engine))
    expected = [library.alone(one.request) for one in CASES]
    assert expected[2].finish_reason == "stop" and "five" in expected[2].text
    with start(
        repository, engine.with_name("server.log"), lifetime_seconds=LIFETIME_SECONDS
    ) as server:
        address = f"{HOST}:{server.ports.grpc}"
        for concurrency in (1, len(CASES)):
            for responses, result in zip(
                asyncio.run(answers(address, concurrency)), expected, strict=True
            ):
                check_answer(responses, result)


async def answers(address: str, concurrency: int) -> list[list[Response]]:
    """The streams of all cases, ``concurrency`` at a time."""
    from examples.triton_async import AsyncClient

    limit = asyncio.Semaphore(concurrency)

    async def one(client: AsyncClient, sent: Case) -> list[Response]:
        async with limit:
            stream = client.stream(sent.renamed(stream=True), timeout_seconds=120)
            return [response async for response in stream]

    async with AsyncClient(address) as client:
        return await asyncio.gather(*(one(client, sent) for sent in CASES))
