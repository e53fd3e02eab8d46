"""Reading what a served model sent, and an engine that is slow enough to be interrupted."""

from __future__ import annotations

import time
from typing import Any

from tests.runtime.fake_engine import FakeEngine, make_manifest
from tests.serving.backend import InferenceResponse, TritonError

#: Tokens of a request that is still in work when something happens to it: seconds.
LONG = 450


def outputs(response: InferenceResponse) -> dict[str, list[Any]]:
    """Output tensors as lists, texts decoded."""
    assert response.error() is None, response.error().message()  # type: ignore[union-attr]
    return {
        tensor.name(): [
            v.decode() if isinstance(v, bytes) else v for v in tensor.as_numpy().tolist()
        ]
        for tensor in response.output_tensors()
    }


def error(responses: list[InferenceResponse]) -> TritonError:
    """The error that a request ended with."""
    found = responses[-1].error()
    assert found is not None
    return found


def endless() -> FakeEngine:
    """An engine that takes its time, and whose texts have no end of their own."""

    class Slow(FakeEngine):
        def forward(self, *arguments: Any) -> Any:
            time.sleep(0.005)
            return super().forward(*arguments)

    return Slow(make_manifest(max_sequence_length=512, eos_token_ids=()))
