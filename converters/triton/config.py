"""The text of a model's ``config.pbtxt`` for Triton Inference Server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from otter_export.manifest import EngineManifest
from otter_export.serving.settings import Settings
from otter_export.serving.tensors import INPUTS, OUTPUTS, TensorField

#: Files of the warm-up request, in the model's ``warmup`` directory, with their tensors' bytes.
WARMUP: Mapping[str, bytes] = {
    # A text is its length (uint32, little-endian) and its bytes.
    "text_input": (5).to_bytes(4, "little") + b"Hello",
    "max_tokens": (4).to_bytes(4, "little", signed=True),
}


def config_text(name: str, manifest: EngineManifest, settings: Settings, instances: str) -> str:
    """A complete ``config.pbtxt``.

    Args:
        name: Name of the model.
        manifest: The engine's.
        settings: Become the model's parameters.
        instances: How many processes load the engine, and where: ``1 kind: KIND_CPU``.
    """
    blocks = [
        "# Written by otter-export triton. Parameters may be edited; start the server again then.\n"
        "# docs/triton.md of otter-export explains each.",
        f'name: {_quoted(name)}\nbackend: "python"',
        "# Requests are batched by the scheduler inside the model, from step to step; for Triton\n"
        "# each is alone.\nmax_batch_size: 0",
        "model_transaction_policy { decoupled: true }",
        "version_policy { latest { num_versions: 1 } }",
        f"instance_group [ {{ count: {instances} }} ]",
        _list("input", [_tensor(f, ["1", "-1" if f.many else "1"], True) for f in INPUTS]),
        _list("output", [_tensor(f, ["-1" if f.many else "1"], False) for f in OUTPUTS]),
        "# One request before the model is ready: the first client does not wait for first times.",
        _warmup(),
        *(_parameter(key, text) for key, text in settings.to_parameters().items()),
        "# Triton's own: inputs come in host memory.",
        _parameter("FORCE_CPU_ONLY_INPUT_TENSORS", "yes"),
        "# What is served, for whoever reads the server's model configuration.",
        *(_parameter(key, text) for key, text in _metadata(manifest).items()),
    ]
    return "\n".join(blocks) + "\n"


def _metadata(manifest: EngineManifest) -> dict[str, str]:
    signals = [f"{s.name} ({s.kind}, bounds {s.bounds})" for s in manifest.signals]
    model = next(f for f in manifest.files if f.path == manifest.model_file)
    return {
        "ENGINE_TARGET": f"{manifest.target}, {manifest.execution_provider}",
        "ENGINE_PRECISION": manifest.precision,
        "ENGINE_BASE": str(manifest.base.get("model_type", "")),
        "ENGINE_SIGNALS": "; ".join(signals),
        "ENGINE_MAX_SEQUENCE_LENGTH": str(manifest.max_sequence_length),
        "ENGINE_SHA256": model.sha256,
        "ENGINE_BUILDER": json.dumps(dict(manifest.builder), sort_keys=True),
    }


def _tensor(field: TensorField, dims: Sequence[str], optional: bool) -> str:
    text = f'name: "{field.name}" data_type: TYPE_{field.data_type} dims: [ {", ".join(dims)} ]'
    return f"  {{ {text}{' optional: true' if optional else ''} }}"


def _list(name: str, items: Sequence[str]) -> str:
    return f"{name} [\n" + ",\n".join(items) + "\n]"


def _warmup() -> str:
    types = {field.name: field.data_type for field in INPUTS}
    inputs = [
        f'    inputs {{ key: "{name}" value {{ data_type: TYPE_{types[name]} dims: [ 1, 1 ] '
        f'input_data_file: "{name}" }} }}'
        for name in WARMUP
    ]
    return "\n".join(["model_warmup [", '  { name: "first" batch_size: 1', *inputs, "  }", "]"])


def _parameter(key: str, text: str) -> str:
    return f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(text)} }} }}"


def _quoted(text: str) -> str:
    """A string of protobuf's text format: JSON's escapes are among those it knows."""
    return json.dumps(text, ensure_ascii=True)
