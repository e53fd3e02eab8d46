"""TensorRT-LLM's engine builder as a command: its flags, and running it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from otter_export.converters.tensorrt_llm_config import ARCHITECTURE
from otter_export.converters.tensorrt_options import EngineShapes
from otter_export.errors import EngineError

PROGRAM = "trtllm-build"
#: What `PROGRAM` runs; a module, so that this interpreter's installation is the one used.
MODULE = "tensorrt_llm.commands.build"
LOG_FILE = "build.log"


def has_tree(shapes: EngineShapes) -> bool:
    """Whether the engine takes tree inputs: one candidate a step needs none."""
    return shapes.max_candidates > 1


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
    if has_tree(shapes):
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
