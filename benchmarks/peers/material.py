"""What the competitors run: bases, and each library's files of them, made once in .cache.

Real text comes from SmolLM2-135M; the larger Llamas have random weights, which cost the same time.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.baselines.onnx_files import write_base, write_reward_model
from benchmarks.peers.process import PeerError
from benchmarks.random_weights import write_random_weights
from benchmarks.record import REPOSITORY
from examples.sentiment import recipe
from examples.sentiment.material import GGUF_FILE, GGUF_PACKAGE, Material, prepare
from otter_export.base_model import BaseModel
from otter_export.checkpoint import Checkpoint

REAL = "SmolLM2-135M"
#: Hidden, inner, layers, heads, key/value heads: 0.5 and 1.1 billion parameters.
RANDOM = {
    "Llama-0.5B": (1280, 3456, 24, 20, 4),
    "Llama-1.1B": (2048, 5632, 22, 32, 4),
}
MODELS = (REAL, *RANDOM)
#: The longest sequence of our engines, ours and the baselines' alike.
_POSITIONS = 1024
#: onnxruntime-genai's builder makes blocks of 32 unless told otherwise; ours are of 128.
GENAI_BLOCKS = (32, 128)
#: By our name of the precision: what llama.cpp calls it, and its number of that file type.
LLAMA_CPP = {"fp32": ("F32", 0), "int8": ("Q8_0", 7), "int4": ("Q4_0", 2)}


@dataclasses.dataclass(frozen=True)
class Files:
    """A model's files, each made when it is first asked for.

    Args:
        name: Of `MODELS`.
        root: Where everything of this model lies.
        report: Told what is being made.
    """

    name: str
    root: Path
    report: Callable[[str], None] = print

    def base(self) -> Path:
        """The Hugging Face directory."""
        if self.name == REAL:
            return _material().base
        return self._made("base", lambda path: write_random(RANDOM[self.name], path))

    def checkpoint(self, kind: str) -> Path:
        """An Otter checkpoint on it: the demo's own for ``value``, else a random channel."""

        def write(path: Path) -> None:
            if self.name == REAL:
                source = dataclasses.replace(_material(), base=self.base())
                arguments = recipe.insert_arguments(source, path)
            else:
                arguments = ["insert", str(self.base()), str(path), "--adapter", "--force"]
            if kind == "q_value":
                arguments += ["--signal", "next:q_value:tanh"]
            elif self.name == REAL:
                arguments += ["--from", str(recipe.SHIPPED)]
            _otter_export(*arguments)

        return self._built(f"checkpoint-{kind}", write)

    def engine(self, kind: str, precision: str) -> Path:
        """An engine of a checkpoint."""
        arguments = ("build", self.checkpoint(kind), "--target", "onnx", "--precision", precision)
        limit = ("--max-seq-len", _POSITIONS)
        return self._built(
            f"engine-{kind}-{precision}",
            lambda path: _otter_export(*arguments, *limit, "--force", "--out", path),
        )

    def graphs(self, precision: str) -> Path:
        """``base/`` and ``reward/`` for `benchmarks.baselines.onnx_files`."""

        def write(path: Path) -> None:
            checkpoint = Checkpoint.open(self.checkpoint("value"))
            shutil.copy(self.base() / "tokenizer.json", path)
            for name, make in {"base": write_base, "reward": write_reward_model}.items():
                (path / name).mkdir()
                make(checkpoint, precision, path / name, _POSITIONS)

        return self._built(f"graphs-{precision}", write)

    def genai(self, precision: str, block: int, python: Path) -> Path:
        """A directory of onnxruntime-genai's builder."""
        command = [python, "-m", "onnxruntime_genai.models.builder", "-i", self.base()]
        command += ["-p", precision, "-e", "cpu", "--extra_options", f"block_size={block}"]
        suffix = "" if precision == "fp32" else f"-{block}"

        def write(path: Path) -> None:
            with tempfile.TemporaryDirectory(dir=self.root) as scratch:
                _run(*command, "-o", path, "-c", scratch)

        return self._made(f"genai-{precision}{suffix}", write)

    def gguf(self, precision: str, python: Path) -> Path:
        """A GGUF file of llama.cpp."""
        name, number = LLAMA_CPP[precision]
        if name == "F32":
            write = self._write_gguf
        else:
            source = self.gguf("fp32", python)

            def write(path: Path) -> None:
                module = ("-m", "benchmarks.peers.quantize_gguf")
                _run(python, *module, source, path / "model.gguf", number)

        return self._made(f"gguf-{name}", write) / "model.gguf"

    def _write_gguf(self, path: Path) -> None:
        from benchmarks.peers.gguf_file import write_gguf

        # All of these models have SmolLM2's tokenizer.
        spec = importlib.util.find_spec(GGUF_PACKAGE)
        assert spec is not None and spec.submodule_search_locations
        tokenizer = Path(spec.submodule_search_locations[0]) / GGUF_FILE
        write_gguf(BaseModel.open(self.base()), path / "model.gguf", tokenizer)

    def delete(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.root, ignore_errors=True)

    def _built(self, name: str, write: Callable[[Path], object]) -> Path:
        """What the code of this checkout makes; that of another is removed."""
        current = f"{name}-{_code()}"
        for old in self.root.glob(f"{name}-????????"):
            if old.name != current:
                shutil.rmtree(old)
        return self._made(current, write)

    def _made(self, name: str, write: Callable[[Path], object]) -> Path:
        """The directory of that name; ``write`` fills it beside its place if it is not there."""
        target = self.root / name
        if not target.is_dir():
            self.report(f"making {target.relative_to(target.parents[1])}")
            self.root.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{name}.{os.getpid()}.partial")
            partial.mkdir()
            try:
                write(partial)
                partial.rename(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return target


def write_random(sizes: tuple[int, ...], directory: Path) -> None:
    """A Llama with random weights and SmolLM2's tokenizer."""
    real = _material().base
    hidden, inner, layers, heads, groups = sizes
    config: dict[str, Any] = json.loads((real / "config.json").read_text(encoding="utf-8"))
    config |= {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": 64,
        "dtype": "bfloat16",
    }
    (directory / "config.json").write_text(json.dumps(config))
    for file in real.glob("*token*"):
        shutil.copy(file, directory)
    write_random_weights(directory)


@functools.cache
def _material() -> Material:
    return prepare(report=print)


@functools.cache
def _code() -> str:
    """A short hash of the code that engines are made by: they are made anew when it changes."""
    digest = hashlib.sha256()
    for folder in ("otter_export", "converters"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def _otter_export(*arguments: object) -> None:
    _run(sys.executable, "-m", "otter_export", *arguments)


def _run(*command: object) -> None:
    """Run a command; what it prints is shown only if it fails."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        list(map(str, command)), cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise PeerError(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
