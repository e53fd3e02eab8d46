"""Time per token against other libraries: plain decoding there, plain and guided decoding here."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.contest import TOP_K, Competitor, Prompts, Setting, contest
from benchmarks.peers.material import GENAI_BLOCKS, LLAMA_CPP, Files
from benchmarks.peers.process import Peer

GENAI = "onnxruntime-genai, plain"
ALONE = "ours: base alone"
#: By the module that a peer's interpreter must have: what installs it.
INSTALL = {
    "onnxruntime_genai": "pip install onnxruntime-genai onnx-ir torch transformers",
    "llama_cpp": "pip install llama-cpp-python (it needs a C++ compiler and cmake)",
}
GUIDED: Mapping[str, Mapping[str, Any]] = {
    "w=1": {"weight": 1.0},
    "w=4": {"weight": 4.0},
    "w=1, nothing pruned": {"weight": 1.0, "prune": False},
}


def version_of(python: Path, module: str, report: Callable[[str], None]) -> str | None:
    """The version of a peer's module; None without it, and how to get it is reported."""
    code = f"import {module}; print({module}.__version__)"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        report(f"left out: {module}; install it with: {INSTALL[module]}")
        return None
    return done.stdout.strip()


def speed(
    files: Files, precision: str, prompts: Prompts, setting: Setting
) -> Iterator[dict[str, Any]]:
    """Rows of one model in one precision.

    Args:
        files: Of the model.
        precision: ``fp32``, ``int8`` or ``int4``.
        prompts: Token ids.
        setting: How it is measured.

    Yields:
        Time per token, and the speed as a share of onnxruntime-genai's with its own settings; of
        our base alone where that is not installed.
    """
    with contextlib.ExitStack() as stack:
        found = list(competitors(files, precision, setting, stack))
        against = GENAI if any(one.name == GENAI for one in found) else ALONE
        for row in contest(found, prompts, setting, against):
            yield {
                "model": files.name,
                "precision": precision,
                "decoding": row["name"],
                "ms a token": row["median"],
                "p10": row["p10"],
                f"speed / {against.partition(',')[0]}": 1 / row["ratio"],
            }


def competitors(
    files: Files, precision: str, setting: Setting, stack: contextlib.ExitStack
) -> Iterator[Competitor]:
    """All that run in this precision; their processes end with the stack."""

    def start(module: str, *arguments: object, python: Path | None = None) -> Peer:
        peer = Peer(module, *arguments, python=python, threads=setting.threads)
        return stack.enter_context(peer)

    if "onnxruntime_genai" in setting.peers:
        for block in GENAI_BLOCKS[:1] if precision == "fp32" else GENAI_BLOCKS:
            directory = files.genai(precision, block, setting.genai)
            name = GENAI if block == GENAI_BLOCKS[0] else f"{GENAI}, blocks of {block}"
            yield Competitor(name, start("genai", directory, python=setting.genai))
    if "llama_cpp" in setting.peers:
        file = files.gguf(precision, setting.llama_cpp)
        name = f"llama.cpp {LLAMA_CPP[precision][0]}, plain"
        yield Competitor(name, start("llama_cpp", file, python=setting.llama_cpp))
    plain = {"method": "plain"}
    if precision == "fp32":
        torch = start("literature", "transformers", files.base())
        yield Competitor("transformers, plain", torch, plain)
    alone = start("literature", "onnx", files.graphs(precision))
    yield Competitor(ALONE, alone, plain)
    value = start("otter", files.engine("value", precision))
    yield Competitor("ours: plain, reward alongside", value, plain)
    guided = {"method": "args-greedy", "top_k": TOP_K}
    for name, options in GUIDED.items():
        yield Competitor(f"ours: guided by value, k={TOP_K}, {name}", value, {**guided, **options})
    q_value = start("otter", files.engine("q_value", precision))
    one = {**guided, "weight": 1.0}
    yield Competitor(f"ours: guided by q_value, k={TOP_K}, w=1", q_value, one)


def draw(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Bars of the last column, a panel for each model and precision."""
    from matplotlib.figure import Figure

    cells = list(dict.fromkeys((row["model"], row["precision"]) for row in rows))
    figure = Figure(figsize=(9, 2.4 * len(cells)), layout="constrained")
    for axis, cell in zip(figure.subplots(len(cells), squeeze=False)[:, 0], cells, strict=True):
        shown = [row for row in rows if (row["model"], row["precision"]) == cell][::-1]
        column = list(shown[0])[-1]
        colors = ["#1f6feb" if "ours" in row["decoding"] else "#8a6d3b" for row in shown]
        axis.barh([row["decoding"] for row in shown], [row[column] for row in shown], color=colors)
        axis.axvline(1, color="black", lw=1)
        axis.tick_params(labelsize=7)
        axis.set_title(f"{', '.join(cell)}: {column}", fontsize=9)
    return figure
