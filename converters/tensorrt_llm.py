"""Builder ``tensorrt-llm`` of target ``trt``: TensorRT-LLM's checkpoint, model file and engine.

The checkpoint is written here, tensor by tensor, on any machine. The engine is built by
TensorRT-LLM itself, in a process of its own, where it and a GPU are at hand; ``--checkpoint-only``
stops before. Either way the directory holds the exact command (docs/tensorrt_llm.md).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import shlex
from pathlib import Path

from otter_export.checkpoint import Checkpoint
from otter_export.converters import emitted
from otter_export.converters.engine_files import (
    builder,
    copy_tokenizer,
    describe_files,
    source_of,
    token_ids,
)
from otter_export.converters.tensorrt_builders import require_usable
from otter_export.converters.tensorrt_llm_command import build_command, has_tree, run_build
from otter_export.converters.tensorrt_llm_config import (
    DTYPES,
    check_supported,
    checkpoint_config,
)
from otter_export.converters.tensorrt_llm_layout import Layout
from otter_export.converters.tensorrt_llm_weights import RankTensors, tensor_bytes
from otter_export.converters.tensorrt_options import EngineShapes, TensorRTOptions, engine_shapes
from otter_export.engine_io import TensorSpec
from otter_export.manifest import EngineManifest
from otter_export.safetensors_io import write_safetensors
from otter_export.targets import Availability, BuildPlan, BuildRequest, Progress

CHECKPOINT = "checkpoint"
CONFIG_FILE = f"{CHECKPOINT}/config.json"
SCRIPT = "build_engine.sh"
CACHE_FORM = "tensorrt_llm"
EMITTED = ("otter_engine_model.py", "tree_inputs.py")
_WHERE = "builder tensorrt-llm"


def plan(checkpoint: Checkpoint, request: BuildRequest, availability: Availability) -> BuildPlan:
    """Check a request and plan its build.

    Args:
        checkpoint: A checkpoint over a Llama or Qwen2 base.
        request: ``fp16`` or ``bf16`` (``fp32`` where nobody stands before this function), with the
            options of target ``trt``.
        availability: Whether TensorRT-LLM's engine builder can be used here.

    Raises:
        UnsupportedError: The base, the precision, a size, the number of ranks, or this machine
            does not allow it.
    """
    options = request.options_as(TensorRTOptions)
    if not options.checkpoint_only:
        require_usable(availability)
    check_supported(checkpoint, request.precision, _WHERE)
    build = LlmBuild(
        checkpoint,
        request.precision,
        Layout.of(checkpoint, options.tensor_parallel),
        engine_shapes(checkpoint, request),
        options.checkpoint_only,
        availability.version,
    )
    tensors = [
        (f"rank{rank}/{t.name}", t.dtype.lower(), t.shape, tensor_bytes(t))
        for rank in range(options.tensor_parallel)
        for t in build.rank_tensors(rank)
    ]
    return BuildPlan(
        weights=tuple(tensors),
        inputs=build.inputs,
        outputs=build.outputs,
        details={"ranks": options.tensor_parallel, **build.next_step},
        write=build.write,
    )


@dataclasses.dataclass(frozen=True)
class LlmBuild:
    """A checked build.

    Args:
        checkpoint: What is built.
        precision: ``fp16``, ``bf16`` or ``fp32``.
        layout: How it is divided among ranks.
        shapes: Sizes of the engine.
        checkpoint_only: Stop before the engine.
        version: Of TensorRT-LLM here; None where it is not installed.
    """

    checkpoint: Checkpoint
    precision: str
    layout: Layout
    shapes: EngineShapes
    checkpoint_only: bool
    version: str | None

    def rank_tensors(self, rank: int) -> RankTensors:
        """The tensors of one rank."""
        return RankTensors(self.checkpoint, self.layout, rank, DTYPES[self.precision][1])

    @property
    def command(self) -> list[str]:
        """``trtllm-build``, as run inside the engine directory."""
        return build_command(CHECKPOINT, EMITTED[0], self.shapes)

    @property
    def next_step(self) -> dict[str, str]:
        """What is left to do where the engine is not built here."""
        line = f"in that directory, on the GPU machine, run: {shlex.join(self.command)}"
        return {"next_step": line} if self.checkpoint_only else {}

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a client of a step sets; TensorRT-LLM's runtime adds the inputs of its cache."""
        words = -(-(self.shapes.max_candidates + 1) // 32)
        plain = (
            TensorSpec("input_ids", "int32", ("tokens",)),
            TensorSpec("last_token_ids", "int32", ("rows",)),
        )
        if not has_tree(self.shapes):
            return plain
        return (
            *plain,
            TensorSpec("spec_decoding_generation_lengths", "int32", ("batch",)),
            TensorSpec("spec_decoding_position_offsets", "int32", ("batch", "step")),
            TensorSpec("spec_decoding_packed_mask", "int32", ("tokens", words)),
            TensorSpec("spec_decoding_use", "int32", (1,)),
        )

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Logits, whose vocabulary is padded to the ranks, and the signals."""
        vocab = self.checkpoint.base.dimensions.vocab_size
        logits = TensorSpec("logits", "float32", ("rows", self.layout.vocabulary_rows))
        signals = (
            TensorSpec(s.name, "float32", ("rows", *([vocab] if s.kind == "q_value" else [])))
            for s in self.checkpoint.config.signals
        )
        return (logits, *signals)

    def write(self, directory: Path, progress: Progress | None) -> EngineManifest:
        """Write everything into an empty directory, and build the engine unless told not to.

        Raises:
            OtterError: A value is beyond the precision's range, or TensorRT-LLM's builder failed.
        """
        names = [*copy_tokenizer(self.checkpoint, directory), *copy_emitted(directory, EMITTED)]
        names += [SCRIPT, *self._write_checkpoint(directory, progress)]
        line = shlex.join(self.command)
        text = '#!/bin/sh\n# Needs TensorRT-LLM 1.0 to 1.2.x and a GPU.\ncd "$(dirname "$0")" && '
        (directory / SCRIPT).write_text(f"{text}exec {line}\n", encoding="utf-8")
        ranks = range(self.layout.tp_size)
        model_file = f"{CHECKPOINT}/rank0.safetensors"
        if not self.checkpoint_only:
            engines = [f"rank{rank}.engine" for rank in ranks]
            names += run_build(self.command, directory, engines)
            model_file = engines[0]
            for rank in ranks:  # the engine holds the weights
                name = f"{CHECKPOINT}/rank{rank}.safetensors"
                (directory / name).unlink()
                names.remove(name)
        return self._manifest(directory, names, model_file)

    def _write_checkpoint(self, directory: Path, progress: Progress | None) -> list[str]:
        (directory / CHECKPOINT).mkdir()
        config = checkpoint_config(
            self.checkpoint,
            self.layout,
            self.precision,
            self.shapes.max_candidates if has_tree(self.shapes) else 0,
        )
        (directory / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        names = [CONFIG_FILE]
        for rank in range(self.layout.tp_size):
            names.append(f"{CHECKPOINT}/rank{rank}.safetensors")
            write_safetensors(
                directory / names[-1], self.rank_tensors(rank), {"format": "pt"}, progress
            )
        return names

    def _manifest(self, directory: Path, names: list[str], model_file: str) -> EngineManifest:
        bos, eos = token_ids(self.checkpoint)
        config, shapes = self.checkpoint.config, self.shapes
        channel = dataclasses.asdict(config)
        widths = ("hidden_size", "intermediate_size", "head_dim")
        heads = ("num_attention_heads", "num_key_value_heads")
        libraries = {} if self.checkpoint_only else {"tensorrt_llm": str(self.version)}
        return EngineManifest(
            target="trt",
            precision=self.precision,
            execution_provider="cuda",
            cache_form=CACHE_FORM,
            model_file=model_file,
            base=dataclasses.asdict(self.checkpoint.base.dimensions),
            channel={name: channel[name] for name in itertools.chain(widths, heads)},
            signals=config.signals,
            max_sequence_length=shapes.max_sequence_length,
            bos_token_id=bos,
            eos_token_ids=eos,
            inputs=self.inputs,
            outputs=self.outputs,
            files=describe_files(directory, names),
            builder=builder(**libraries),
            source=source_of(self.checkpoint),
            options={
                "builder": "tensorrt-llm",
                "builder_version": None if self.checkpoint_only else self.version,
                "checkpoint_only": self.checkpoint_only,
                "command": shlex.join(self.command),
                "tensor_parallel": self.layout.tp_size,
                "max_batch_size": shapes.max_batch_size,
                "max_candidates": shapes.max_candidates,
                "plugin_layers": 0,
            },
        )


def copy_emitted(directory: Path, names: tuple[str, ...]) -> list[str]:
    """Copy files of `otter_export.converters.emitted` beside what is built; returns their names."""
    folder = Path(str(emitted.__file__)).parent
    for name in names:
        (directory / name).write_bytes((folder / name).read_bytes())
    return list(names)
