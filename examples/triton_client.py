"""A client of a served Otter engine, to copy from: gRPC streaming, and HTTP with or without it.

    pip install 'tritonclient[grpc]'
    python examples/triton_client.py --prompt "The movie was" --weight 4
    python examples/triton_client.py --prompt "The movie was" --transport generate --json

`stream_grpc` and `stream_http` yield a response for each token as it comes; `generate` returns one
response for the whole text. Each response is a dict of the model's outputs. `stream_http` and
`generate` need nothing but Python's own library.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import queue
import sys
import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

MODEL = "otter"
#: Nothing may wait for ever: a server whose model died keeps its connections open.
TIMEOUT_SECONDS = 300.0

Fields = Mapping[str, Any]
Response = dict[str, Any]


class ServerError(Exception):
    """The server refused the request, or failed; the message is its own."""


def stream_grpc(
    address: str,
    fields: Fields,
    *,
    model: str = MODEL,
    request_id: str = "",
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Generator[Response, None, None]:
    """Send one request by gRPC and yield its responses as they come.

    Closing the iterator cancels the request: the server frees its place within a step.

    Args:
        address: ``HOST:PORT`` of the server's gRPC endpoint.
        fields: The model's inputs by name, as Python values: ``{"text_input": "The movie was"}``.
        model: Name of the model.
        request_id: Any name; the server's log has it.
        timeout_seconds: Longest wait for the next response.

    Raises:
        ServerError: The server refused the request, failed, or was silent for too long.
    """
    from tritonclient import grpc
    from tritonclient.utils import InferenceServerException

    # Results and errors arrive on a thread of the client's, and are taken here.
    arrived: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client = grpc.InferenceServerClient(address)
    try:
        inputs = grpc_inputs(client.get_model_metadata(model).inputs, fields)
        client.start_stream(lambda result, error: arrived.put((result, error)))
        client.async_stream_infer(
            model, inputs, request_id=request_id, enable_empty_final_response=True
        )
        final = False
        while not final:
            result, error = arrived.get(timeout=timeout_seconds)
            if error is not None:
                raise ServerError(error.message())
            outputs, final = grpc_response(result)
            if outputs:
                yield outputs
    except InferenceServerException as error:
        raise ServerError(error.message()) from None
    except queue.Empty:
        raise ServerError(f"no answer for {timeout_seconds:g} s") from None
    finally:
        client.stop_stream(cancel_requests=True)
        client.close()


def grpc_inputs(declared: Sequence[Any], fields: Fields) -> list[Any]:
    """Tensors of a request.

    Args:
        declared: ``inputs`` of the model's metadata, which say each input's type and shape.
        fields: Their values: single ones or lists, text as ``str``.

    Raises:
        ServerError: The model has no such input.
    """
    import numpy as np
    from tritonclient import grpc
    from tritonclient.utils import triton_to_np_dtype

    known = {tensor.name: tensor for tensor in declared}
    tensors = []
    for name, value in fields.items():
        if name not in known:
            raise ServerError(f"the model has no input {name!r}; its inputs: {', '.join(known)}")
        kind, rank = known[name].datatype, len(known[name].shape)
        values = value if isinstance(value, list | tuple) else [value]
        encoded = [v.encode() if isinstance(v, str) else v for v in values]
        array = np.array(encoded, dtype=triton_to_np_dtype(kind)).reshape([1] * (rank - 1) + [-1])
        tensor = grpc.InferInput(name, list(array.shape), kind)
        tensors.append(tensor.set_data_from_numpy(array))
    return tensors


def grpc_response(result: Any) -> tuple[Response, bool]:
    """The outputs of a gRPC result as Python values, and whether it is the last one."""
    response = result.get_response()
    outputs: Response = {}
    for tensor in response.outputs:
        values = [
            v.decode() if isinstance(v, bytes) else v for v in result.as_numpy(tensor.name).tolist()
        ]
        outputs[tensor.name] = values[0] if len(values) == 1 else values
    return outputs, response.parameters["triton_final_response"].bool_param


def stream_http(
    address: str, fields: Fields, *, model: str = MODEL, timeout_seconds: float = TIMEOUT_SECONDS
) -> Generator[Response, None, None]:
    """Send one request to ``/generate_stream`` and yield its responses as they come.

    Args:
        address: ``HOST:PORT`` of the server's HTTP endpoint.
        fields: The model's inputs by name.
        model: Name of the model.
        timeout_seconds: Longest wait for the next response.

    Raises:
        ServerError: The server refused the request, failed, or was silent for too long.
    """
    with _post(address, f"/v2/models/{model}/generate_stream", fields, timeout_seconds) as reply:
        if reply.status != 200:
            raise ServerError(_message(reply.read()))
        # Server-sent events: lines "data: {...}", empty lines between them.
        finished = False
        for line in reply:
            if line.startswith(b"data:"):
                response = _checked(line.removeprefix(b"data:"))
                finished = bool(response.get("finish_reason"))
                yield response
        # A connection that breaks looks like the end of the text.
        if not finished:
            raise ServerError("the stream broke off before its end")


def generate(
    address: str, fields: Fields, *, model: str = MODEL, timeout_seconds: float = TIMEOUT_SECONDS
) -> Response:
    """Send one request to ``/generate`` and return its only response: the whole text.

    Args and Raises: as `stream_http`.
    """
    with _post(address, f"/v2/models/{model}/generate", fields, timeout_seconds) as reply:
        body = reply.read()
        if reply.status != 200:
            raise ServerError(_message(body))
        return _checked(body)


@contextlib.contextmanager
def _post(
    address: str, path: str, fields: Fields, timeout_seconds: float
) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection(address, timeout=timeout_seconds)
    try:
        connection.request("POST", path, json.dumps(fields), {"Content-Type": "application/json"})
        yield connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        raise ServerError(f"{address}: {error or type(error).__name__}") from None
    finally:
        connection.close()


def _checked(body: bytes) -> Response:
    """A response, unless it is an error: the status may be 200 all the same."""
    response: Response = json.loads(body)
    if "error" in response:
        raise ServerError(response["error"])
    return response


def _message(body: bytes) -> str:
    """The text of an error; ``/generate_stream`` sends it as an event, ``/generate`` plainly."""
    try:
        return str(json.loads(body.removeprefix(b"data:"))["error"])
    except (ValueError, KeyError, TypeError):
        return body.decode("utf-8", "replace") or "the server closed the connection"


def request_fields(options: argparse.Namespace) -> dict[str, Any]:
    """The model's inputs by name, from the command line; what was not given is left out."""
    given = {
        "text_input": options.prompt,
        "method": options.method,
        "top_k": options.top_k,
        "reward_weight": options.weight,
        "gate": options.gate,
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "seed": options.seed,
        "stop_words": options.stop,
        "return_candidates": options.candidates or None,
    }
    return {name: value for name, value in given.items() if value is not None}


def responses(options: argparse.Namespace) -> Iterator[Response]:
    """Send the request by the transport that was asked for."""
    fields = request_fields(options)
    shared = {"model": options.model, "timeout_seconds": options.timeout}
    if options.transport == "grpc":
        name = options.request_id or uuid.uuid4().hex
        yield from stream_grpc(options.grpc, {**fields, "stream": True}, request_id=name, **shared)
    elif options.transport == "generate_stream":
        yield from stream_http(options.http, {**fields, "stream": True}, **shared)
    else:
        yield generate(options.http, fields, **shared)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description="Continue a prompt with a served Otter engine.")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--method", help="args-greedy, args-stochastic or plain")
    parser.add_argument("--top-k", type=int, help="candidates per token")
    parser.add_argument("--weight", type=float, help="of the reward; may be negative")
    parser.add_argument("--gate", type=float, help="guide only from this entropy on, in nats")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--stop", action="append", metavar="TEXT", help="may be repeated")
    parser.add_argument("--candidates", action="store_true", help="with what else was scored")
    parser.add_argument("--json", action="store_true", help="print each response as one line")
    transports = ("grpc", "generate_stream", "generate")
    parser.add_argument("--transport", choices=transports, default=transports[0])
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--grpc", default="127.0.0.1:8001", metavar="HOST:PORT")
    parser.add_argument("--http", default="127.0.0.1:8000", metavar="HOST:PORT")
    parser.add_argument("--request-id", help="for the server's log; gRPC only")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_SECONDS, metavar="SECONDS")
    options = parser.parse_args()
    try:
        for response in responses(options):
            text = json.dumps(response) + "\n" if options.json else response["text_output"]
            print(text, end="", flush=True)
        print("" if options.json else "\n", end="")
    except ServerError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
