"""L4: steps of the torch engine as CUDA graphs need them; the capture itself on a GPU only."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch

from otter_export import ArgsGreedy, Request, generate
from otter_export.errors import EngineError
from otter_export.modeling.torch_engine import TorchOptions
from otter_export.modeling.torch_step import TorchStep
from otter_export.runtime.engine import Engine
from otter_export.runtime.prefill import prefill
from tests.modeling.torch_pairs import FAMILIES, Pair, make_engine, make_pairs
from tests.tree_steps import ids


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    return make_pairs(tmp_path_factory)


def test_steps_of_one_shape_share_their_buffers(pairs: dict[str, Pair]) -> None:
    """What a CUDA graph needs: the same memory in every step of a shape, also for a new request."""
    engine = pairs["llama"].torch
    steps = engine._executor._steps  # type: ignore[attr-defined]
    steps.forget(lambda _: True)
    request = Request(ids(1, 5)[0], ArgsGreedy(top_k=4, weight=1.0, prune=False), max_tokens=9)
    first = generate(engine, request)[0]
    shapes = set(steps._entries)
    assert (1, 4, 4) in {shape for _, shape in shapes}
    again = generate(engine, request)[0]
    assert again.token_ids == first.token_ids and again.rewards == first.rewards
    assert set(steps._entries) == shapes


def test_a_cache_that_is_gone_gives_its_memory_back(pairs: dict[str, Pair]) -> None:
    engine = pairs["llama"].torch
    caches = [prefill(engine, ids(1, 3))[0] for _ in range(9)]
    tensors = [weakref.ref(c.blocks[0].tensor) for c in caches]  # type: ignore[attr-defined]
    del caches
    assert 1 <= sum(tensor() is not None for tensor in tensors) <= 4


def test_memory_of_an_earlier_cache_is_zero_again(pairs: dict[str, Pair]) -> None:
    engine = pairs["llama"].torch
    cache, _ = prefill(engine, ids(1, 3))
    address = cache.blocks[0].address(0)  # type: ignore[attr-defined]
    cache.blocks[0].tensor.fill_(torch.nan)  # type: ignore[attr-defined]
    del cache, _
    fresh = engine.new_cache(1)
    assert fresh.blocks[0].address(0) == address  # type: ignore[attr-defined]
    assert not fresh.blocks[0].tensor.any()  # type: ignore[attr-defined]


class RecordedGraph:
    """What a CUDA graph does: launches the same work on the same memory, into the same outputs."""

    def __init__(self, step: TorchStep) -> None:
        self.step = step
        step._outputs = step._compute()
        self.outputs = dict(step._outputs)
        for tensor in self.outputs.values():
            tensor.fill_(torch.nan)  # capturing runs nothing
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        for name, tensor in self.step._compute().items():
            self.outputs[name].copy_(tensor)


def _with_graphs(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[RecordedGraph]:
    """Let an engine on the CPU capture its steps as it would on a GPU."""
    graphs: list[RecordedGraph] = []

    def captured(step: TorchStep) -> RecordedGraph:
        graphs.append(RecordedGraph(step))
        return graphs[-1]

    monkeypatch.setattr(TorchStep, "_captured", captured)
    monkeypatch.setattr(engine._executor, "_graph_pool", (0, 1))  # type: ignore[attr-defined]
    engine._executor._steps.forget(lambda _: True)  # type: ignore[attr-defined]
    return graphs


@pytest.mark.parametrize("family", FAMILIES)
def test_replayed_steps_give_the_same_tokens(
    family: str, pairs: dict[str, Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the capture itself: inputs, cache and outputs are where a graph expects them."""
    pair = pairs[family]
    graphs = _with_graphs(pair.torch, monkeypatch)
    requests = [
        Request(ids(1, 5 + 9 * i, i)[0], ArgsGreedy(top_k=6, weight=3.0), max_tokens=25)
        for i in range(4)
    ]
    found, expected = (generate(e, requests, batch_size=2) for e in (pair.torch, pair.onnx))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.token_ids == theirs.token_ids
        np.testing.assert_allclose(ours.rewards, theirs.rewards, atol=2e-5)
    assert graphs and sum(graph.replays for graph in graphs) > len(graphs)
    again = sum(graph.replays for graph in graphs)
    generate(pair.torch, requests[0])
    assert sum(graph.replays for graph in graphs) > again
    pair.torch._executor._steps.forget(lambda _: True)  # type: ignore[attr-defined]


def test_a_model_that_cannot_be_captured_runs_step_by_step(
    pairs: dict[str, Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, tried = pairs["llama"], []
    _with_graphs(pair.torch, monkeypatch)

    def refused(step: TorchStep) -> None:
        tried.append(step)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(TorchStep, "_captured", refused)
    request = Request(ids(1, 5)[0], ArgsGreedy(top_k=4, prune=False), max_tokens=9)
    found, expected = (generate(e, request)[0] for e in (pair.torch, pair.onnx))
    assert found.token_ids == expected.token_ids
    assert len(tried) == len(set(map(id, tried))) >= 1
    pair.torch._executor._steps.forget(lambda _: True)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("CUDA error: no kernel image\nmore"),
            "failed in torch: CUDA error: no kernel",
        ),
        (
            torch.OutOfMemoryError("full"),
            r"ran out of memory in a step of 1 sequences of 3 tokens",
        ),
    ],
)
def test_what_torch_reports_is_one_line(
    pairs: dict[str, Pair], monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    tries = []

    def failing(step: TorchStep) -> None:
        tries.append(step)
        raise error

    monkeypatch.setattr(TorchStep, "_compute", failing)
    with pytest.raises(EngineError, match=message) as caught:
        prefill(pairs["llama"].torch, ids(1, 3))
    assert "\n" not in str(caught.value)
    # Memory that is only kept for later is given up before the second try.
    assert len(tries) == (2 if isinstance(error, torch.OutOfMemoryError) else 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_generation_on_a_gpu_equals_the_cpu(cuda_graphs: bool, pairs: dict[str, Pair]) -> None:
    """fp32; with graphs every shape is captured at its third step, and replayed after."""
    options = TorchOptions(device="cuda", precision="fp32", cuda_graphs=cuda_graphs)
    for pair in pairs.values():
        engine = make_engine(pair.checkpoint, options)
        for k in (1, 4, 8):
            request = Request(ids(1, 9, k)[0], ArgsGreedy(top_k=k, weight=2.0), max_tokens=40)
            found, expected = (generate(e, request)[0] for e in (engine, pair.onnx))
            assert found.token_ids == expected.token_ids
            np.testing.assert_allclose(found.rewards, expected.rewards, atol=1e-4)
