"""Target ``trtllm``: a model for TensorRT-LLM's PyTorch backend, 1.3 and later (no engine file).

It is a Hugging Face directory, with the inserted tensors among the base's, and a Python package
that registers the architecture (docs/tensorrt_llm.md). Nothing is computed here, so it is made on
any machine.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from pathlib import Path

from otter_export.checkpoint import Checkpoint
from otter_export.converters.engine_files import (
    builder,
    copy_tokenizer,
    describe_files,
    source_of,
    token_ids,
)
from otter_export.converters.tensorrt_llm import copy_emitted
from otter_export.converters.tensorrt_llm_config import DTYPES, FAMILIES, check_supported
from otter_export.converters.tensorrt_llm_weights import tensor_bytes
from otter_export.converters.trtllm_directory import hub_config, hub_shards, write_shards
from otter_export.engine_io import TensorSpec
from otter_export.errors import UnsupportedError
from otter_export.manifest import EngineManifest
from otter_export.targets import (
    Availability,
    BuildPlan,
    BuildRequest,
    NoOptions,
    Progress,
    max_sequence_length,
)

PACKAGE = "otter_trtllm"
EMITTED = tuple(f"{PACKAGE}/{name}.py" for name in ("__init__", "model", "weights", "client"))
CONFIG_FILE = "config.json"
CACHE_FORM = "tensorrt_llm"
_WHERE = "target trtllm"
#: TensorRT-LLM's attention kernels; fp32 is for comparisons.
PRECISIONS = ("bf16", "fp16")


@dataclasses.dataclass(frozen=True)
class TrtllmTarget:
    """TensorRT-LLM's PyTorch backend; fp16 and bf16."""

    name: str = "trtllm"
    summary: str = "TensorRT-LLM's PyTorch backend, 1.3 and later; bf16 and fp16"
    precisions: tuple[str, ...] = PRECISIONS
    options: type[NoOptions] = NoOptions
    families: tuple[str, ...] = FAMILIES

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
        if request.precision not in PRECISIONS:
            raise UnsupportedError(
                f"--precision {request.precision} is not available for {_WHERE}; available: "
                f"{', '.join(PRECISIONS)}"
            )
        return plan_directory(checkpoint, request)


TARGET = TrtllmTarget()


def plan_directory(checkpoint: Checkpoint, request: BuildRequest) -> BuildPlan:
    """`TrtllmTarget.plan`, for every precision, fp32 included."""
    check_supported(checkpoint, request.precision, _WHERE)
    length = max_sequence_length(checkpoint, request)
    shards = hub_shards(checkpoint, DTYPES[request.precision][1])
    weights = [
        (tensor.name, tensor.dtype.lower(), tensor.shape, tensor_bytes(tensor))
        for shard in shards
        for tensor in shard
    ]
    inputs = (TensorSpec("input_ids", "int32", ("tokens",)),)
    outputs = _outputs(checkpoint)

    def write(directory: Path, progress: Progress | None) -> EngineManifest:
        (directory / PACKAGE).mkdir()
        names = [*copy_tokenizer(checkpoint, directory), *copy_emitted(directory, EMITTED)]
        config = hub_config(checkpoint, request.precision)
        (directory / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        written = write_shards(directory, shards, progress)
        bos, eos = token_ids(checkpoint)
        widths = ("hidden_size", "intermediate_size", "head_dim")
        heads = ("num_attention_heads", "num_key_value_heads")
        return EngineManifest(
            target=TARGET.name,
            precision=request.precision,
            execution_provider="cuda",
            cache_form=CACHE_FORM,
            model_file=written[0],
            base=dataclasses.asdict(checkpoint.base.dimensions),
            channel={n: getattr(checkpoint.config, n) for n in (*widths, *heads)},
            signals=checkpoint.config.signals,
            max_sequence_length=length,
            bos_token_id=bos,
            eos_token_ids=eos,
            inputs=inputs,
            outputs=outputs,
            files=describe_files(directory, [*names, CONFIG_FILE, *written]),
            builder=builder(),
            source=source_of(checkpoint),
        )

    serve = f"trtllm-serve DIR --custom_module_dirs DIR/{PACKAGE} --max_seq_len {length}"
    step = f"with TensorRT-LLM 1.3 or later: {serve}, or: cd DIR && python -m {PACKAGE}.client"
    return BuildPlan(tuple(weights), inputs, outputs, {"next_step": step}, write)


def _outputs(checkpoint: Checkpoint) -> tuple[TensorSpec, ...]:
    vocab = checkpoint.base.dimensions.vocab_size
    sizes = {"value": 1, "q_value": vocab}
    signals = (
        TensorSpec(s.name, "float32", ("sequences", sizes[s.kind]))
        for s in checkpoint.config.signals
    )
    return (TensorSpec("logits", "float32", ("sequences", vocab)), *signals)
