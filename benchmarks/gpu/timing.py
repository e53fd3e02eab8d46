"""Times on a GPU: CUDA graphs over weights that do not stay in the cache."""

from __future__ import annotations

from collections.abc import Callable

import torch

#: The copies of the weights have this many times the bytes of the L2 cache, so that each launch
#: reads its weights from memory, as in a model with many layers.
CACHES = 4
REPLAYS = 20


def copies_of(bytes_each: int) -> int:
    """How many copies of some weights do not fit the L2 cache together."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return max(2, -(-CACHES * cache // bytes_each))


def graph_of(launches: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """``launches`` as one CUDA graph: no time of Python or of the launch itself is measured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles kernels and chooses algorithms before the capture
        launches()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launches()
    return graph


def best_microseconds(graphs: dict[str, torch.cuda.CUDAGraph]) -> dict[str, float]:
    """Least time of one replay of each graph; they take turns."""
    best = dict.fromkeys(graphs, float("inf"))
    for _ in range(REPLAYS):
        for name, graph in graphs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            best[name] = min(best[name], 1e3 * start.elapsed_time(end))
    return best


def bandwidth() -> float:
    """Bytes a second of this device's memory: the better of reading and of copying 1 GiB."""
    source = torch.zeros(1 << 28, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    graphs = {
        "read": graph_of(lambda: source.sum()),
        "copy": graph_of(lambda: target.copy_(source)),
    }
    best = best_microseconds(graphs)
    return 1e6 * source.nbytes * max(1 / best["read"], 2 / best["copy"])
