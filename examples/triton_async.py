"""Many requests at once from one process: the asyncio client of a served Otter engine.

    async with AsyncClient("127.0.0.1:8001") as client:
        async for response in client.stream({"text_input": "The movie was"}):
            print(response["text_output"], end="")

The streams of one client share its connection; `examples/triton_client.py` has the simple forms.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import grpc
from tritonclient.grpc import aio
from tritonclient.utils import InferenceServerException

if __package__:
    from examples.triton_client import (
        MODEL,
        TIMEOUT_SECONDS,
        Fields,
        Response,
        ServerError,
        grpc_inputs,
        grpc_response,
    )
else:  # run as a script
    from triton_client import (
        MODEL,
        TIMEOUT_SECONDS,
        Fields,
        Response,
        ServerError,
        grpc_inputs,
        grpc_response,
    )


class AsyncClient:
    """A gRPC connection to one model.

    Args:
        address: ``HOST:PORT`` of the server's gRPC endpoint.
        model: Name of the model.
    """

    def __init__(self, address: str, model: str = MODEL) -> None:
        self._client = aio.InferenceServerClient(address)
        self._model = model
        self._declared: Any = None

    async def __aenter__(self) -> AsyncClient:
        """Ask the server for the model's inputs."""
        metadata = await self._client.get_model_metadata(self._model)
        self._declared = metadata.inputs
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._client.close()

    async def stream(
        self, fields: Fields, *, request_id: str = "", timeout_seconds: float = TIMEOUT_SECONDS
    ) -> AsyncGenerator[Response, None]:
        """Send one request and yield its responses as they come.

        Leaving the iterator early (``aclose``, or the end of its task) cancels the request.

        Args:
            fields: The model's inputs by name.
            request_id: Any name; the server's log has it.
            timeout_seconds: Most time for all of them.

        Raises:
            ServerError: The server refused the request, failed, or took too long.
        """
        inputs = grpc_inputs(self._declared, fields)

        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": self._model, "inputs": inputs, "request_id": request_id}

        call = self._client.stream_infer(requests(), stream_timeout=timeout_seconds)
        try:
            async for result, error in call:
                if error is not None:
                    raise ServerError(error.message())
                outputs, _ = grpc_response(result)
                if outputs:
                    yield outputs
        except InferenceServerException as error:
            raise ServerError(error.message()) from None
        except grpc.RpcError as error:
            raise ServerError(f"{error.code().name}: {error.details()}") from None
        finally:
            call.cancel()
