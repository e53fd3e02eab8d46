"""The model of Triton's Python backend: tensors in, the runtime's scheduler, responses out.

``model.py`` of a repository imports `TritonPythonModel` from here. `execute` returns at once;
tokens are sent as they come (a decoupled model). Three threads work beside it: the scheduler's,
the responder's and the watcher's.
"""

from __future__ import annotations

import contextlib
import json
import os
import traceback
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Made by the backend, inside its own process only.
import triton_python_backend_utils as pb_utils

from otter_export.errors import EngineError, OtterError, RequestError, UnsupportedError
from otter_export.runtime.load import open_engine
from otter_export.runtime.scheduler import Scheduler
from otter_export.serving.error_text import log_text
from otter_export.serving.metrics import Metrics
from otter_export.serving.parsing import parse_request
from otter_export.serving.request_log import RequestLog
from otter_export.serving.responder import Reply, Responder
from otter_export.serving.settings import Settings
from otter_export.serving.tensors import INPUTS
from otter_export.serving.triton_channel import TritonChannel, TritonMetrics
from otter_export.serving.watcher import Watcher

#: The engine inside the directory of a model's version.
ENGINE_DIRECTORY = "engine"
#: Requests in work get this long when the model is unloaded; Triton waits for them before that.
_CLOSE_SECONDS = 5.0


class TritonPythonModel:
    """What the backend calls; see https://github.com/triton-inference-server/python_backend."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the engine and start the scheduler.

        Args:
            args: ``model_config`` (JSON), ``model_name``, ``model_version``, ``model_repository``
                (the model's directory), ``model_instance_name`` and so on.

        Raises:
            TritonModelException: The configuration or the engine is not usable; says why.
        """
        try:
            self._initialize(args)
        except OtterError as error:
            raise pb_utils.TritonModelException(" ".join(str(error).split())) from error

    def _initialize(self, args: Mapping[str, str]) -> None:
        parameters = json.loads(args["model_config"]).get("parameters", {})
        self._settings = Settings.from_parameters(
            {name: value["string_value"] for name, value in parameters.items()}
        )
        context = {"model": args["model_name"], "instance": args["model_instance_name"]}
        self._log = RequestLog(
            context,
            requests=self._settings.log_requests,
            prompts=self._settings.log_prompts,
        )
        _choose_device(args)
        version = Path(args["model_repository"]) / args["model_version"]
        engine_directory = version / ENGINE_DIRECTORY
        self._private = (str(engine_directory), str(engine_directory.resolve()))
        engine = open_engine(
            engine_directory,
            provider=self._settings.provider or None,
            threads=self._settings.threads or None,
        )
        self._metrics = Metrics()
        self._sink = TritonMetrics(context)
        self._observers = (self._metrics, self._log)
        self._scheduler = Scheduler(engine, self._settings.limits(), self._observers)
        self._responder = Responder(self._not_sent)
        self._watcher = Watcher(self._scheduler.cancel, self._publish, self._watch_failed)
        self._scheduler.start()
        self._watcher.start()
        self._log.write("loaded", numpy=np.__version__, **self._settings.to_parameters())

    def execute(self, requests: Sequence[Any]) -> None:
        """Hand requests to the scheduler; each gets its responses or one error."""
        for request in requests:
            channel, request_id = None, None
            try:
                channel = TritonChannel(request.get_response_sender(), self._private)
                request_id = request.request_id() or uuid.uuid4().hex[:12]
                self._accept(request, channel, request_id)
            # A traceback out of here would end every request of this call. Not all are Exceptions:
            # a panic of the tokenizers library is none.
            except BaseException as error:
                self._failed(channel, request_id, error)

    def _failed(
        self, channel: TritonChannel | None, request_id: str | None, error: BaseException
    ) -> None:
        """End a request with what nobody foresaw; raises nothing."""
        kind = type(error).__name__
        # Where it happened, and not what the error says: that may be a part of the prompt.
        lines = [*traceback.format_tb(error.__traceback__), kind]
        if self._settings.log_prompts:
            lines.append(log_text(error))
        self._log.write("failed", level="error", request_id=request_id, error="\n".join(lines))
        if channel is not None:
            with contextlib.suppress(Exception):
                channel.fail(EngineError(f"internal error ({kind}); see the server's log"))

    def _accept(self, request: Any, channel: TritonChannel, request_id: str) -> None:
        try:
            served = parse_request(
                _tensors(request),
                self._settings,
                parameters=json.loads(request.parameters() or "{}"),
                timeout_microseconds=request.timeout(),
            )
        except OtterError as error:
            for observer in self._observers:
                observer.rejected(request_id, error)
            channel.fail(error)
            return
        most = self._settings.max_candidates if served.return_candidates else 0
        reply = Reply(channel, served.stream, most)
        try:
            reply.handle = handle = self._scheduler.submit(
                served.request,
                on_event=lambda event: self._responder.put(reply, event),
                deadline_seconds=served.deadline_seconds,
                request_id=request_id,
            )
        except (EngineError, UnsupportedError) as error:
            # What a submission can get wrong is the request's fault, such as an unknown signal.
            channel.fail(RequestError(str(error)))
        except OtterError as error:
            channel.fail(error)
        else:
            self._watcher.add(handle, channel)

    def finalize(self) -> None:
        """Stop; the server calls this when the model is unloaded, after its last request."""
        self._scheduler.close(drain=True, timeout=_CLOSE_SECONDS)
        self._responder.close()
        self._watcher.close()
        self._log.write("unloaded")

    def _not_sent(self, reply: Reply, error: BaseException) -> None:
        """A response could not be made or sent; the request ends, so that no client waits."""
        request_id = reply.handle.request_id if reply.handle else None
        self._log.write("not_sent", level="error", request_id=request_id, error=log_text(error))
        with contextlib.suppress(Exception):
            kind = type(error).__name__
            reply.channel.fail(EngineError(f"a response could not be sent ({kind})"))
        if reply.handle is not None:
            self._scheduler.cancel(reply.handle)

    def _watch_failed(self, error: Exception) -> None:
        self._log.write("watch_failed", level="error", error=f"{type(error).__name__}: {error}")

    def _publish(self) -> None:
        self._metrics.publish(self._scheduler.stats, self._sink)


def _tensors(request: Any) -> dict[str, Any]:
    """The inputs that the client sent, as arrays."""
    found = {field.name: pb_utils.get_input_tensor_by_name(request, field.name) for field in INPUTS}
    return {name: tensor.as_numpy() for name, tensor in found.items() if tensor is not None}


def _choose_device(args: Mapping[str, str]) -> None:
    """Let CUDA see the device of this instance alone; the process has no other use for one."""
    if args.get("model_instance_kind") != "GPU":
        return
    index = int(args.get("model_instance_device_id", "0"))
    visible = [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[index] if index < len(visible) else str(index)
