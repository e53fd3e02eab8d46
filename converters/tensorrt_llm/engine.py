"""Builder ``tensorrt-llm`` of target ``trt``: TensorRT-LLM's checkpoint, model file and engine.

The checkpoint is written here, tensor by tensor, on any machine. The engine is built by
TensorRT-LLM itself, in a process of its own, where it and a GPU are at hand; ``--checkpoint-only``
stops before. Either way the directory holds the exact command (docs/tensorrt_llm.md).
"""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from otter_export.checkpoint import Checkpoint
from otter_export.converters.engine_directory import copy_tokenizer, engine_manifest
from otter_export.converters.target import Availability, BuildPlan, BuildRequest, Progress
from otter_export.converters.tensorrt.builders import require_usable
from otter_export.converters.tensorrt.options import EngineShapes, TensorRTOptions, engine_shapes
from otter_export.converters.tensorrt_llm.config import (
    ARCHITECTURE,
    check_supported,
    checkpoint_config,
)
from otter_export.converters.tensorrt_llm.emitted import copy_emitted
from otter_export.converters.tensorrt_llm.layout import Layout
from otter_export.converters.tensorrt_llm.weights import RankTensors, tensor_row
from otter_export.engine_io import (
    INPUT_IDS,
    LOGITS,
    TENSORRT_LLM,
    TENSORRT_LLM_INPUTS,
    TensorSpec,
)
from otter_export.errors import EngineError
from otter_export.files import write_json
from otter_export.manifest import EngineManifest
from otter_export.precision import Precision
from otter_export.safetensors_io import write_safetensors
from otter_export.signals import kind_of

CHECKPOINT = "checkpoint"
CONFIG_FILE = f"{CHECKPOINT}/config.json"
SCRIPT = "build_engine.sh"
EMITTED = ("otter_engine_model.py", "tree_inputs.py")
_WHERE = "builder tensorrt-llm"
PROGRAM = "trtllm-build"
#: What `PROGRAM` runs; a module, so that this interpreter's installation is the one used.
MODULE = "tensorrt_llm.commands.build"
LOG_FILE = "build.log"


def plan(checkpoint: Checkpoint, request: BuildRequest, availability: Availability) -> BuildPlan:
    """Check a request and plan its build.

    Args:
        checkpoint: A checkpoint over a base of `config.FAMILIES`.
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
    precision = check_supported(checkpoint, request.precision, _WHERE)
    build = LlmBuild(
        checkpoint,
        precision,
        Layout.of(checkpoint, options.tensor_parallel),
        engine_shapes(checkpoint, request),
        options.checkpoint_only,
        availability.version,
    )
    tensors = [
        tensor_row(t, f"rank{rank}/")
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
        precision: One of `otter_export.precision.TENSORRT_LLM`.
        layout: How it is divided among ranks.
        shapes: Sizes of the engine.
        checkpoint_only: Stop before the engine.
        version: Of TensorRT-LLM here; None where it is not installed.
    """

    checkpoint: Checkpoint
    precision: Precision
    layout: Layout
    shapes: EngineShapes
    checkpoint_only: bool
    version: str | None

    def rank_tensors(self, rank: int) -> RankTensors:
        """The tensors of one rank."""
        return RankTensors(self.checkpoint, self.layout, rank, self.precision.dtype.safetensors)

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
        names = (INPUT_IDS, *TENSORRT_LLM_INPUTS)
        shapes: list[tuple[int | str, ...]] = [("tokens",), ("rows",)]
        if self.shapes.has_tree:
            shapes += [("batch",), ("batch", "step"), ("tokens", words), (1,)]
        return tuple(TensorSpec(n, "int32", s) for n, s in zip(names, shapes, strict=False))

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Logits, whose vocabulary is padded to the ranks, and the signals."""
        vocab = self.checkpoint.base.dimensions.vocab_size
        logits = TensorSpec(LOGITS, "float32", ("rows", self.layout.vocabulary_rows))
        signals = (
            TensorSpec(s.name, "float32", ("rows", *kind_of(s).output_dims(s, vocab)))
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
            self.shapes.max_candidates if self.shapes.has_tree else 0,
        )
        write_json(directory / CONFIG_FILE, config)
        names = [CONFIG_FILE]
        for rank in range(self.layout.tp_size):
            names.append(f"{CHECKPOINT}/rank{rank}.safetensors")
            write_safetensors(
                directory / names[-1], self.rank_tensors(rank), {"format": "pt"}, progress
            )
        return names

    def _manifest(self, directory: Path, names: list[str], model_file: str) -> EngineManifest:
        shapes = self.shapes
        return engine_manifest(
            self.checkpoint,
            directory,
            names,
            libraries={} if self.checkpoint_only else {"tensorrt_llm": str(self.version)},
            target="trt",
            precision=self.precision.name,
            execution_provider="cuda",
            cache_form=TENSORRT_LLM,
            model_file=model_file,
            max_sequence_length=shapes.max_sequence_length,
            inputs=self.inputs,
            outputs=self.outputs,
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


def build_command(checkpoint: str, model_file: str, shapes: EngineShapes) -> list[str]:
    """The command that makes ``rank*.engine`` from a checkpoint, relative to the engine directory.

    One worker: a second would be a fresh process, in which the model file has not been imported and
    its architecture is unknown. The tree inputs come with the speculative mode; TensorRT-LLM itself
    lengthens sequences by the draft.

    Args:
        checkpoint: The checkpoint's directory.
        model_file: The emitted model file.
        shapes: Sizes of the engine.
    """
    # A whole prompt has to fit, and so has a tree step of all sequences.
    tree = shapes.max_batch_size * (shapes.max_candidates + 1)
    most = max(tree, shapes.max_sequence_length, shapes.max_step * shapes.max_batch_size)
    flags: dict[str, str | int] = {
        "checkpoint_dir": checkpoint,
        "model_cls_file": model_file,
        "model_cls_name": ARCHITECTURE,
        "output_dir": ".",
        "workers": 1,
        "max_batch_size": shapes.max_batch_size,
        "max_beam_width": 1,
        "max_input_len": shapes.max_sequence_length,
        "max_seq_len": shapes.max_sequence_length,
        "max_num_tokens": most,
        "gpt_attention_plugin": "auto",
        "gemm_plugin": "auto",
        "remove_input_padding": "enable",
        "kv_cache_type": "paged",
        "context_fmha": "enable",
    }
    if shapes.has_tree:
        flags |= {"speculative_decoding_mode": "medusa", "max_draft_len": shapes.max_candidates}
    return [PROGRAM, *(part for name, value in flags.items() for part in (f"--{name}", str(value)))]


def run_build(command: Sequence[str], directory: Path, engines: Sequence[str]) -> list[str]:
    """Run TensorRT-LLM's builder inside ``directory``.

    Args:
        command: Of `build_command`.
        directory: Where it runs, and where its log goes.
        engines: The files that it has to leave there.

    Returns:
        Names of the files that it left: engines, their configuration, the log.

    Raises:
        EngineError: It failed, or an engine is missing; with the last line that it printed.
    """
    log = directory / LOG_FILE
    with log.open("wb") as output:
        arguments = [sys.executable, "-m", MODULE, *command[1:]]
        code = subprocess.run(
            arguments, cwd=directory, stdout=output, stderr=subprocess.STDOUT, check=False
        ).returncode
    missing = [name for name in engines if not (directory / name).is_file()]
    if code or missing:
        problem = f"exited with {code}" if code else f"left no {', '.join(missing)}"
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
        raise EngineError(
            f"{PROGRAM} {problem}; it printed last: {last[:300]}. Write the checkpoint with "
            "--checkpoint-only and run its build_engine.sh to see all of it"
        )
    return [*engines, "config.json", LOG_FILE]
