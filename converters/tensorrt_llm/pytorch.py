"""Target ``trtllm``: a model for TensorRT-LLM's PyTorch backend, 1.3 and later (no engine file).

It is a Hugging Face directory, with the inserted tensors among the base's, and a Python package
that registers the architecture (docs/tensorrt_llm.md). Nothing is computed here, so it is made on
any machine.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from otter_export.channel import expected_tensors
from otter_export.checkpoint import Checkpoint
from otter_export.converters.engine_directory import copy_tokenizer, engine_manifest
from otter_export.converters.target import (
    Availability,
    BuildPlan,
    BuildRequest,
    NoOptions,
    Progress,
    max_sequence_length,
)
from otter_export.converters.tensorrt_llm.config import (
    ARCHITECTURE,
    channel_shape,
    check_supported,
    norm_epsilon,
    rotary,
)
from otter_export.converters.tensorrt_llm.emitted import copy_emitted
from otter_export.converters.tensorrt_llm.weights import Part, tensor_row
from otter_export.engine_io import INPUT_IDS, LOGITS, TENSORRT_LLM, TensorSpec
from otter_export.files import write_json
from otter_export.manifest import EngineManifest
from otter_export.precision import TENSORRT_LLM as TENSORRT_LLM_PRECISIONS
from otter_export.precision import Precision, choose_precision
from otter_export.safetensors_io import PlannedTensor, TensorStore
from otter_export.shards import in_shards, write_shards
from otter_export.signals import kind_of

PACKAGE = "otter_trtllm"
EMITTED = tuple(
    f"{PACKAGE}/{name}.py" for name in ("__init__", "layers", "model", "weights", "client")
)

CONFIG_FILE = "config.json"
_WHERE = "target trtllm"
#: TensorRT-LLM's attention kernels.
PRECISIONS = {name: TENSORRT_LLM_PRECISIONS[name] for name in ("bf16", "fp16")}


@dataclasses.dataclass(frozen=True)
class TrtllmTarget:
    """TensorRT-LLM's PyTorch backend; fp16 and bf16."""

    name: str = "trtllm"
    summary: str = "TensorRT-LLM's PyTorch backend, 1.3 and later; bf16 and fp16"
    precisions: tuple[str, ...] = tuple(PRECISIONS)
    options: type[NoOptions] = NoOptions

    def availability(self) -> tuple[Availability, ...]:
        """Always: nothing of TensorRT-LLM is needed to write the directory."""
        version = None
        for package in ("tensorrt_llm", "tensorrt-llm"):
            try:
                version = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        note = "writes a Hugging Face directory and a model package"
        return (Availability("", True, version, False, note),)

    def plan(self, checkpoint: Checkpoint, request: BuildRequest) -> BuildPlan:
        """Plan the directory.

        Raises:
            UnsupportedError: The base, the signals or the precision have no model there.
        """
        choose_precision(PRECISIONS, request.precision, _WHERE)
        return plan_directory(checkpoint, request)


TARGET = TrtllmTarget()


def plan_directory(checkpoint: Checkpoint, request: BuildRequest) -> BuildPlan:
    """`TrtllmTarget.plan`, for every precision, fp32 included."""
    precision = check_supported(checkpoint, request.precision, _WHERE)
    length = max_sequence_length(checkpoint, request)
    shards = in_shards(hub_tensors(checkpoint, precision.dtype.safetensors))
    weights = tuple(tensor_row(tensor) for shard in shards for tensor in shard)
    inputs = (TensorSpec(INPUT_IDS, "int32", ("tokens",)),)
    outputs = _outputs(checkpoint)

    def write(directory: Path, progress: Progress | None) -> EngineManifest:
        (directory / PACKAGE).mkdir()
        names = [*copy_tokenizer(checkpoint, directory), *copy_emitted(directory, EMITTED)]
        config = hub_config(checkpoint, precision)
        write_json(directory / CONFIG_FILE, config)
        written = write_shards(directory, shards, progress)
        return engine_manifest(
            checkpoint,
            directory,
            [*names, CONFIG_FILE, *written],
            target=TARGET.name,
            precision=precision.name,
            execution_provider="cuda",
            cache_form=TENSORRT_LLM,
            model_file=written[0],
            max_sequence_length=length,
            inputs=inputs,
            outputs=outputs,
        )

    serve = f"trtllm-serve DIR --custom_module_dirs DIR/{PACKAGE} --max_seq_len {length}"
    step = f"with TensorRT-LLM 1.3 or later: {serve}, or: cd DIR && python -m {PACKAGE}.client"
    return BuildPlan(weights, inputs, outputs, {"next_step": step}, write)


def _outputs(checkpoint: Checkpoint) -> tuple[TensorSpec, ...]:
    vocab = checkpoint.base.dimensions.vocab_size
    signals = (
        TensorSpec(s.name, "float32", ("sequences", *(kind_of(s).output_dims(s, vocab) or (1,))))
        for s in checkpoint.config.signals
    )
    return (TensorSpec(LOGITS, "float32", ("sequences", vocab)), *signals)


def hub_config(checkpoint: Checkpoint, precision: Precision) -> dict[str, Any]:
    """The base's config.json with this architecture, and what its model has to know in ``otter``.

    Head counts stay the base's: transformers checks them against the hidden size. The model adds
    the channel's, for as many ranks as there are, before the KV cache is made. Rotary settings are
    in the form that transformers 4 and 5 both read.
    """
    base, config = checkpoint.base, checkpoint.config
    d, turning = base.dimensions, rotary(checkpoint.base)
    _, eos = base.special_token_ids
    dropped = ("rope_parameters", "dtype", "auto_map", "transformers_version")
    first = f"{base.family.layers}.0"
    return {
        **{key: value for key, value in base.data.items() if key not in dropped},
        "architectures": [ARCHITECTURE],
        "torch_dtype": precision.dtype.name,
        "num_key_value_heads": d.num_key_value_heads,
        "head_dim": d.head_dim,
        "rms_norm_eps": norm_epsilon(base),
        "rope_theta": turning.theta,
        "rope_scaling": None if turning.scaling is None else dict(turning.scaling),
        "tie_word_embeddings": d.tie_word_embeddings,
        "eos_token_id": list(eos) if len(eos) > 1 else next(iter(eos), None),
        "otter": {
            **channel_shape(config),
            "base_attention_heads": d.num_attention_heads,
            "base_key_value_heads": d.num_key_value_heads,
            "qkv_bias": base.has(f"{first}.self_attn.q_proj.bias"),
            "dense_bias": base.has(f"{first}.self_attn.o_proj.bias"),
            "mlp_bias": base.has(f"{first}.mlp.gate_proj.bias"),
            "signals": config.to_json()["signals"],
        },
    }


def hub_tensors(checkpoint: Checkpoint, dtype: str) -> Iterator[PlannedTensor]:
    """All tensors, base and inserted."""
    base = checkpoint.base
    for name in _base_names(checkpoint):
        stored = base.stored_name(name)
        assert stored is not None, name  # Checkpoint.open has listed what is missing
        yield _planned(base.weights, stored, name, dtype)
    for name in expected_tensors(checkpoint.config, base):
        yield _planned(checkpoint.tensors, name, name, dtype)


def _base_names(checkpoint: Checkpoint) -> Iterator[str]:
    """The base's tensors, as the model reads them; a copy of a tied head is left out."""
    base = checkpoint.base
    stems = [name for name, _ in base.sites.embeddings]
    stems += [site.parameter for site in base.sites.projections]
    stems += [norm.name for norm in base.sites.norms]
    if not base.dimensions.tie_word_embeddings:
        stems.append(base.family.output_head)
    for stem in stems:
        yield f"{stem}.weight"
        if base.has(f"{stem}.bias"):
            yield f"{stem}.bias"


def _planned(store: TensorStore, stored: str, name: str, dtype: str) -> PlannedTensor:
    part = Part(store, stored, tuple(slice(None) for _ in store[stored].shape))
    return PlannedTensor(name, dtype, part.shape, lambda: part.bits(dtype))
