"""A served model without a server: the real model, scheduler and threads on a fake engine."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from otter_export.serving.settings import Settings
from otter_export.serving.tensors import INPUTS, NUMPY_TYPES
from tests.runtime.fake_engine import FakeEngine, make_manifest
from tests.serving import backend

_OWN_MODULES = ("otter_export.serving.triton_model", "otter_export.serving.triton_channel")


def arrays(fields: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Input tensors ``[1, n]`` from Python values, as a client sends them."""
    types = {field.name: NUMPY_TYPES[field.data_type] for field in INPUTS}
    made = {}
    for name, value in fields.items():
        values = value if isinstance(value, list) else [value]
        encoded = [v.encode() if isinstance(v, str) else v for v in values]
        made[name] = np.array([encoded], dtype=types[name])
    return made


@dataclasses.dataclass
class Served:
    """A loaded model and its engine."""

    model: Any
    engine: FakeEngine
    page: dict[Any, float]

    def ask(
        self, *, name: str = "", microseconds: int = 0, **fields: Any
    ) -> backend.ResponseSender:
        """Send a request; returns at once."""
        request = backend.InferenceRequest(arrays(fields), name, microseconds)
        self.model.execute([request])
        return request.sender

    def metric(self, family: str, **labels: str) -> float:
        """A number of the metrics page."""
        wanted = set(labels.items())
        found = [
            v for (name, have), v in self.page.items() if name == family and wanted <= set(have)
        ]
        assert len(found) == 1, (family, found)
        return found[0]


Serve = Callable[..., Served]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """``serve(max_queue=2)`` loads a model with these settings; it is unloaded after the test."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend.as_module())
    for name in _OWN_MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module(_OWN_MODULES[0])
    loaded: list[Any] = []

    def load(engine: FakeEngine | None = None, **settings: Any) -> Served:
        used = engine or FakeEngine(make_manifest(max_sequence_length=512))
        monkeypatch.setattr(module, "open_engine", lambda path, **_: used)
        model = module.TritonPythonModel()
        model.initialize(arguments(Settings(**settings)))
        loaded.append(model)
        return Served(model, used, backend.MetricFamily.page)

    yield load
    for model in loaded:
        model.finalize()
    for name in _OWN_MODULES:
        sys.modules.pop(name, None)


def arguments(settings: Settings) -> dict[str, str]:
    """What the backend passes to ``initialize``."""
    parameters = {k: {"string_value": v} for k, v in settings.to_parameters().items()}
    return {
        "model_config": json.dumps({"parameters": parameters}),
        "model_name": "otter",
        "model_version": "1",
        "model_repository": str(Path("repository") / "otter"),
        "model_instance_name": "otter_0_0",
        "model_instance_kind": "CPU",
        "model_instance_device_id": "0",
    }
