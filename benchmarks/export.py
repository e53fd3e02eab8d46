"""Wall time and memory of ``build``, against ``cp`` of what it writes and another builder.

Usage: python -m benchmarks.export [--models 0.5B ...] [--cases BF16-int4 ...] [--rounds 3] [--cold]
                                   [--genai-python PATH] [--folder DIR] [--name export]

Every run is a process of its own and starts with nothing left to be written to the disk. ``cp``
copies the engine that was built, onto the same disk. Memory is the anonymous part of the resident
size (RssAnon), sampled: pages of mapped files, which the system takes back when it needs them, are
no part of it. onnxruntime-genai's builder runs with the Python that is named, or this one if it is
installed there; else its rows are missing, and the benchmark says so.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.random_weights import write_random_weights
from benchmarks.record import in_turns, write
from tests import tiny

#: Hidden, inner, layers, heads, key/value heads, head size, vocabulary, tied.
SIZES: dict[str, tuple[int, int, int, int, int, int, int, bool]] = {
    "135M": (576, 1536, 30, 9, 3, 64, 49152, True),
    "0.5B": (1280, 3456, 24, 20, 4, 64, 49152, True),
    "1.1B": (2048, 5632, 22, 32, 4, 64, 32000, False),
    "7B": (4096, 11008, 32, 32, 32, 128, 32000, False),
}
#: How the checkpoint stores weights, and what is built: casts first, then two without a cast.
CASES = (
    ("BF16", "fp32"),
    ("BF16", "int8"),
    ("BF16", "int4"),
    ("F32", "fp32"),
    ("F16", "fp16"),
)
_GENAI = "onnxruntime-genai"
_LENGTH = 2048


@dataclasses.dataclass(frozen=True)
class Case:
    """One build.

    Args:
        model: One of `SIZES`.
        dtype: Of the checkpoint's weights.
        precision: Of the engine.
    """

    model: str
    dtype: str
    precision: str


def write_base(case: Case, directory: Path) -> Path:
    """A Llama of these sizes with random weights."""
    hidden, inner, layers, heads, groups, size, vocabulary, tied = SIZES[case.model]
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": groups, "head_dim": size,
        "vocab_size": vocabulary, "tie_word_embeddings": tied, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "max_position_embeddings": _LENGTH, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    tiny.write_tokenizer(directory, 128)
    write_random_weights(directory, case.dtype)
    return directory


@dataclasses.dataclass
class Runner:
    """Runs commands; remembers the largest anonymous memory of each.

    Args:
        cold: Whether files are read from the disk, and not from the system's memory.
        peaks: Bytes, by the name of what runs.
    """

    cold: bool
    peaks: dict[str, int] = dataclasses.field(default_factory=dict)

    def seconds(self, name: str, reads: Path, writes: Path, *command: object) -> float:
        """Run a command that reads one directory and writes another, which is removed first."""
        shutil.rmtree(writes, ignore_errors=True)
        os.sync()
        if self.cold:
            forget(reads)
        started = time.perf_counter()
        with tempfile.TemporaryFile() as shown:
            process = subprocess.Popen(list(map(str, command)), stdout=shown, stderr=shown)
            while process.poll() is None:
                peak = max(self.peaks.get(name, 0), anonymous(process.pid))
                self.peaks[name] = peak
                time.sleep(0.005)
            seconds = time.perf_counter() - started
            if process.returncode:
                shown.seek(0)
                raise SystemExit(f"{name} failed:\n{shown.read().decode(errors='replace')}")
        return seconds


def anonymous(pid: int) -> int:
    """Bytes of a process's memory that no file is behind; 0 when it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    return int(found[1]) << 10 if found else 0


def forget(directory: Path) -> None:
    """Drop a directory's files from the system's memory."""
    for path in directory.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(
    case: Case, folder: Path, rounds: int, cold: bool, genai: Path | None
) -> Iterator[dict[str, Any]]:
    """All ways to build one case, in turns."""
    base = write_base(case, folder / "base")
    run = Runner(cold)
    ours = (sys.executable, "-m", "otter_export")
    insert = (*ours, "insert", base, folder / "ckpt", "--adapter")
    run.seconds("insert", base, folder / "ckpt", *insert)
    engine, linked, copy = folder / "engine", folder / "linked", folder / "copy"
    build = (*ours, "build", folder / "ckpt", "--precision", case.precision)
    runs: dict[str, Callable[[], float]] = {
        "build": functools.partial(run.seconds, "build", base, engine, *build, "--out", engine),
        "cp": functools.partial(
            run.seconds, "cp", engine, copy, "cp", "-r", "--reflink=never", engine, copy
        ),
    }
    if (case.dtype, case.precision) in (("F32", "fp32"), ("F16", "fp16")):
        runs["build --link"] = functools.partial(
            run.seconds, "build --link", base, linked, *build, "--link", "--out", linked
        )
    elif genai is not None:
        # Like ours, whatever it caches of the hub goes into a directory of its own.
        builder = (genai, "-m", "onnxruntime_genai.models.builder", "-i", base, "-e", "cpu")
        target = folder / "genai"
        runs[_GENAI] = functools.partial(
            run.seconds, _GENAI, base, target,
            *builder, "-p", case.precision, "-o", target, "-c", folder / "cache",
        )  # fmt: skip
    for row in in_turns(runs, rounds=rounds, against="cp", warmup=0 if cold else 1):
        yield {
            "model": case.model,
            "weights": case.dtype,
            "precision": case.precision,
            "what": row["name"],
            "seconds": row["median"],
            "÷ cp": row["ratio"],
            "anonymous MiB": run.peaks[row["name"]] >> 20,
        }


def genai_python(given: Path | None) -> Path | None:
    """The Python that has onnxruntime-genai, if there is one."""
    if given is not None:
        return given
    if importlib.util.find_spec("onnxruntime_genai") is not None:
        return Path(sys.executable)
    print(f"{_GENAI} is not installed here: pip install {_GENAI}, or --genai-python PATH")
    return None


def plot(rows: list[dict[str, Any]]) -> Any:
    """Each way as a bar, in times of ``cp``."""
    from matplotlib.figure import Figure

    bars = [row for row in rows if row["what"] != "cp"]
    figure = Figure(figsize=(8, 1 + 0.25 * len(bars)), layout="constrained")
    axes = figure.subplots()
    names = [
        " ".join(str(row[k]) for k in ("model", "weights", "precision", "what")) for row in bars
    ]
    colors = ["C1" if row["what"] == _GENAI else "C0" for row in bars]
    axes.barh(names, [row["÷ cp"] for row in bars], color=colors)
    axes.axvline(1, color="gray")
    axes.invert_yaxis()
    axes.set_xlabel("seconds ÷ seconds of cp of the engine")
    return figure


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--models", nargs="+", choices=list(SIZES), default=["135M", "0.5B", "1.1B"]
    )
    parser.add_argument("--cases", nargs="+", default=["-".join(case) for case in CASES])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", action="store_true", help="Read from the disk.")
    parser.add_argument("--genai-python", type=Path)
    parser.add_argument("--folder", type=Path, help="Where models are made, and removed again.")
    parser.add_argument("--name", default="export", help="Of the record.")
    options = parser.parse_args()
    genai = genai_python(options.genai_python)
    rows: list[dict[str, Any]] = []
    for model in options.models:
        for named in options.cases:
            case = Case(model, *named.split("-"))
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                found = measure(case, Path(folder), options.rounds, options.cold, genai)
                for row in found:
                    print(", ".join(f"{k} {v}" for k, v in row.items()), flush=True)
                    rows.append(row)
    versions = {} if genai is None else {_GENAI: _version(genai)}
    write(
        options.name,
        rows,
        libraries=("mobius-onnx", "onnx-ir", "torch", "transformers"),
        versions=versions,
        figure=plot(rows),
        cold=options.cold,
    )


def _version(python: Path) -> str:
    code = f"import importlib.metadata as m; print(m.version('{_GENAI}'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
