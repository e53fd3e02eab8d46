"""What a reward takes in space: a channel's, and a reward model's of the base's size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.contest import TOP_K, WEIGHT, Setting, percent
from benchmarks.peers.material import Files
from benchmarks.peers.process import Peer


def space_saved(
    files: Files, precision: str, prompt: Sequence[int], setting: Setting
) -> Iterator[dict[str, Any]]:
    """What a reward takes beside the base: on the disk, and in memory.

    Args:
        files: Of the model.
        precision: Of base, reward model and engine.
        prompt: Token ids.
        setting: Tokens and threads.

    Yields:
        A row for each measure. ``RssAnon`` is a process's own memory after its last token,
        ``VmHWM`` its peak with the files that it maps; each process runs alone, and what that of
        the base alone takes is subtracted.
    """
    graphs, engine = files.graphs(precision), files.engine("value", precision)

    def memory(module: str, *arguments: object, **options: Any) -> dict[str, int]:
        with Peer(module, *arguments, threads=setting.threads) as peer:
            found: dict[str, int] = peer.ask(prompt, setting.tokens, **options)["memory"]
            return found | {"disk": 0}

    options = {"k": TOP_K, "weight": WEIGHT}
    alone = memory("literature", "onnx", graphs, method="plain")
    alone["disk"] = _model_size(graphs / "base")
    reward = memory("literature", "onnx", graphs, method="args_cached", **options)
    reward["disk"] = alone["disk"] + _model_size(graphs / "reward")
    channel = memory("otter", engine, method="args-greedy", top_k=TOP_K, weight=WEIGHT)
    channel["disk"] = _model_size(engine)
    for measure in ("disk", "RssAnon", "VmHWM"):
        more = [(one[measure] - alone[measure]) / 1e6 for one in (reward, channel)]
        yield {
            "model": files.name,
            "precision": precision,
            "measure": measure,
            "base MB": alone[measure] / 1e6,
            "reward model MB": more[0],
            "channel MB": more[1],
            "saved": percent(1 - more[1] / more[0]),
        }


def _model_size(directory: Path) -> int:
    """Bytes of graph and weights; a tokenizer belongs to the base in any case."""
    files = (*directory.glob("model.onnx*"), *directory.glob("*.safetensors"))
    return sum(path.stat().st_size for path in files)
