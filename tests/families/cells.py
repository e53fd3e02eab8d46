"""The cells of the coverage table: one function a cell, run on any case.

A cell returns its figures, or raises. Differences are largest ones, in units of the largest
expected magnitude. Tests run every cell of every case; ``make families`` writes what they measured.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from otter_export import ArgsGreedy, Plain, Request, Result, generate, load_engine
from otter_export.checkpoint import Checkpoint
from otter_export.converters.target import BuildRequest
from otter_export.converters.tensorrt.options import TensorRTOptions
from otter_export.converters.tensorrt.target import TARGET as TRT
from otter_export.converters.tensorrt_llm.pytorch import TARGET as TRTLLM
from otter_export.evaluation.subject import Options
from otter_export.evaluation.verification import verify
from otter_export.graph.pipeline import lower, tensorrt
from otter_export.initialization import evenly_spaced
from otter_export.modeling.data import Item, Row
from otter_export.modeling.learner import Task
from otter_export.modeling.otter_model import load_reference
from otter_export.modeling.training import Trainer
from otter_export.modeling.training_config import TrainingConfig
from otter_export.precision import ONNX_RUNTIME, TENSORRT
from otter_export.runtime.engine import Engine
from tests import built
from tests.converters.tensorrt_llm.conftest import standin_torch_available
from tests.families.made import LENGTH, NEW_TOKENS, Made, prompts
from tests.graph.in_place import InPlaceGraph
from tests.runtime.executors import graphs
from tests.tree_steps import candidates

Figures = dict[str, float]
Cell = Callable[[Made], Figures]

#: The same numbers summed in another order.
FP32 = 2e-5
#: Bounds of half precision: 10 and 7 bits through some dozens of operations.
HALF = {"fp16": 2e-2, "bf16": 1.5e-1}
GUIDED = ArgsGreedy(top_k=6, weight=3.0)


def insert(made: Made) -> Figures:
    """Base logits keep their bits, and a copied channel follows the base at every layer."""
    checkpoint = made.insert("copy", initialization="copy")
    model, ids = load_reference(checkpoint), torch.tensor([prompts()[-1], prompts()[-1][::-1]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, made.hugging_face(ids).logits)
        states = model.base.base_model(ids, output_hidden_states=True).hidden_states
    dimensions = checkpoint.base.dimensions
    assert len(states) == dimensions.num_hidden_layers + 1
    copied = evenly_spaced(checkpoint.config.hidden_size, dimensions.hidden_size)
    parts = [(s[..., : dimensions.hidden_size], s[..., dimensions.hidden_size :]) for s in states]
    copy = max(built.relative(x.numpy(), base.numpy()[..., copied]) for base, x in parts)
    assert copy < FP32
    return {"copy": copy}


def train(made: Made) -> Figures:
    """Three steps of the training loop: the loss is finite, only the channel changes."""
    checkpoint = made.insert("trained", initialization="normal")
    trainer, difference = _trainer(checkpoint)
    before = {name: p.detach().clone() for name, p in trainer.model.channel_parameters()}
    assert trainer.run()
    changed = {n for n, p in trainer.model.channel_parameters() if not torch.equal(p, before[n])}
    assert changed == set(trainer.parameters)
    state = trainer.model.base.state_dict()
    assert all(torch.equal(state[n], v) for n, v in made.hugging_face.state_dict().items())
    losses = [point["loss"] for point in trainer.progress.curve]
    assert len(losses) == 3 and all(map(math.isfinite, losses))
    return {"attention": difference, "loss": losses[-1]}


def onnx(made: Made, precision: str) -> Figures:
    """A build for ONNX Runtime passes ``verify``."""
    return _verified(made.onnx(precision), made.checkpoint, None)


def decoding(made: Made) -> Figures:
    """Tokens of a batch equal transformers', guided ones those of separate forwards."""
    engine, given = made.engine, prompts()
    found = _generated(engine, Plain(), len(given))
    for prompt, result in zip(given, found, strict=True):
        assert _visible(made, result.token_ids) == _visible(made, _transformers(made, prompt))
    crowd = _generated(engine, GUIDED, len(given))
    for prompt, result in zip(given, crowd, strict=True):
        alone = generate(engine, _request(prompt, GUIDED))[0]
        assert (result.token_ids, result.rewards) == (alone.token_ids, alone.rewards)
    tokens = _guided_by_forwards(made, given[-1])
    assert list(crowd[-1].token_ids) == tokens
    return {"tokens": sum(len(r.token_ids) for r in (*found, *crowd))}


def torch_engine(made: Made) -> Figures:
    """The checkpoint decodes in torch as its engine does."""
    engine = load_engine(made.checkpoint.directory, provider="cpu", threads=1)
    return _same_decoding(engine, made.engine)


def shapes(made: Made) -> Figures:
    """The channel's upper half with shared attention, and a probe, decode as torch computes."""
    layers = made.checkpoint.base.dimensions.num_hidden_layers
    half, probe = made.shaped(layers // 2, "shared"), made.shaped(layers)
    figures = [_as_whole_sequences(shaped) for shaped in (half, probe)]
    figures.append(torch_engine(half))
    figures.append(trt_form(half))
    _trainer(half.checkpoint)
    return {name: max(one[name] for one in figures) for name in ("logits", "signals")}


def trt_form(made: Made) -> Figures:
    """The graph of target ``trt`` in float32 decodes as the ``onnx`` engine does."""
    engine = graphs.in_place_engine(made.checkpoint, made.root / "trt-fp32", "f32")
    return _same_decoding(engine, made.engine)


def trt(made: Made, precision: str) -> Figures:
    """The graph that TensorRT is given passes ``verify`` on the CPU."""
    model = lower(made.checkpoint, tensorrt(graphs.CAPACITY), precision)
    directory = made.root / f"trt-{precision}"
    if precision == "bf16":
        # ONNX Runtime has no such kernels on a CPU; ONNX's evaluator rounds every operation.
        ids = [prompts()[2]]
        found, _ = InPlaceGraph.of(model, directory, evaluator=True)(np.array(ids))
        return _near(found, made.torch_outputs(ids), HALF[precision])
    graphs.write_in_place(made.checkpoint, directory, model, precision, builder="tensorrt-rtx")
    return _verified(directory, made.checkpoint, "cpu")


def trt_build(made: Made) -> Figures:
    """TensorRT itself builds an engine, without a GPU; its layers are those of the graph."""
    builder = next((a.name for a in TRT.availability() if a.usable and not a.needs_gpu), None)
    if builder is None:
        pytest.skip("no builder of target trt can be used here without a GPU")
    options = TensorRTOptions(
        builder,
        max_batch_size=graphs.MAX_BATCH,
        max_candidates=graphs.MAX_CANDIDATES,
        max_step=graphs.MAX_STEP,
        plugin=False,
        sm="89",
    )
    plan = TRT.plan(made.checkpoint, BuildRequest("fp16", LENGTH, options))
    directory = made.root / "trt-engine"
    directory.mkdir()
    manifest = plan.write(directory, None)
    return {"layers": sum(manifest.options["layers"].values())}


def trtllm(made: Made, precision: str) -> Figures:
    """The model for TensorRT-LLM's PyTorch backend, over a stand-in of its modules."""
    directory = made.root / f"trtllm-{precision}"
    plan = TRTLLM.plan(made.checkpoint, BuildRequest(precision))
    directory.mkdir()
    plan.write(directory, None).save(directory)
    given, vocabulary = prompts(), made.checkpoint.base.dimensions.vocab_size
    with standin_torch_available() as patch:
        patch.syspath_prepend(directory)
        client = importlib.import_module("otter_trtllm.client")
        llm = client.LLM(str(directory), tensor_parallel_size=1)
        guidance = client.Guidance(made.checkpoint.config.to_json()["signals"][0])
        outputs = client.forward(llm, given, guidance, vocabulary)
    expected = [made.torch_outputs([prompt]) for prompt in given]
    found = {
        "logits": np.stack([logits for logits, _ in outputs]),
        "reward": np.stack([np.ravel(values)[0] for _, values in outputs]),
    }
    wanted = {name: np.stack([e[name][0, -1] for e in expected]) for name in found}
    return _near(found, wanted, HALF[precision])


def reason_of(made: Made, error: Exception) -> str:
    """An error in words, without the folder of this run."""
    return str(error).replace(f"{made.root}/", "")


#: Name of a cell to its function: what a base needs whatever it is built for.
MODEL_CELLS: Mapping[str, Cell] = {
    "insert": insert,
    "train": train,
    "decoding": decoding,
    "torch": torch_engine,
    "shapes": shapes,
}
#: Those of a target are named after target and precision.
ONNX_CELLS: Mapping[str, Cell] = {
    f"onnx {name}": functools.partial(onnx, precision=name) for name in ONNX_RUNTIME["cpu"]
}
TENSORRT_CELLS: Mapping[str, Cell] = {
    "trt form": trt_form,
    "trt build": trt_build,
    **{f"trt {name}": functools.partial(trt, precision=name) for name in TENSORRT},
    **{f"trtllm {name}": functools.partial(trtllm, precision=name) for name in TRTLLM.precisions},
}
CELLS: Mapping[str, Cell] = {**MODEL_CELLS, **ONNX_CELLS, **TENSORRT_CELLS}


def _trainer(checkpoint: Checkpoint) -> tuple[Trainer, float]:
    """A training run of three steps, and how far its signals are from the reference's.

    Training has an attention of its own, which must have the windows and caps too.
    """
    items = [Item(i, (Row((*ids, 2), 1),), (-1.0) ** i) for i, ids in enumerate(prompts())]
    task = Task("reward", "regression", items, items)
    trainer = Trainer(checkpoint, TrainingConfig(max_steps=3, batch_tokens=64), [task])
    ids = torch.tensor([prompts()[-1]])
    with torch.no_grad():
        found, expected = trainer.model(ids), load_reference(checkpoint)(ids)
    difference = built.relative(found.signals["next"].numpy(), expected.signals["next"].numpy())
    assert difference < FP32
    return trainer, difference


def _verified(directory: Path, checkpoint: Checkpoint, provider: str | None) -> Figures:
    options = Options(tuple(prompts()), max_tokens=6, provider=provider)
    report = verify(directory, checkpoint.directory, options)
    report.raise_for_failures()
    measured = {result.name: result.measured for result in report.results}
    return {name: value for name in ("logits", "signals") if (value := measured[name]) is not None}


def _near(
    found: Mapping[str, built.Array], expected: Mapping[str, built.Array], tolerance: float
) -> Figures:
    figures = {n: built.relative(found[n], expected[n]) for n in ("logits", "reward")}
    assert all(difference < tolerance for difference in figures.values()), figures
    return {"logits": figures["logits"], "signals": figures["reward"]}


def _same_decoding(engine: Engine, expected: Engine) -> Figures:
    """A tree step behind prompts of all lengths, and guided and plain generation."""
    steps = [candidates(one, prompts()[1:], [5, 9, 77]) for one in (engine, expected)]
    figures = {"logits": built.relative(steps[0].logits, steps[1].logits)}
    for name, values in steps[1].signals.items():
        figures[name] = built.relative(steps[0].signals[name], values)
    assert all(difference < FP32 for difference in figures.values()), figures
    for method in (GUIDED, Plain()):
        pairs = [_generated(one, method, 3) for one in (engine, expected)]
        for ours, theirs in zip(*pairs, strict=True):
            assert ours.token_ids == theirs.token_ids
            np.testing.assert_allclose(ours.rewards, theirs.rewards, atol=FP32)
    return {"logits": figures.pop("logits"), "signals": max(figures.values())}


def _as_whole_sequences(made: Made) -> Figures:
    """A tree step of the ``onnx`` engine behind prompts, and the reference without any cache."""
    tokens = [5, 9, 77]
    step = candidates(made.engine, prompts()[1:], tokens)
    wanted = [made.torch_outputs([[*p, token] for token in tokens]) for p in prompts()[1:]]
    figures = {}
    for name, values in {"logits": step.logits, **step.signals}.items():
        expected = np.stack([outputs[name][:, -1] for outputs in wanted])
        figures[name] = built.relative(values, expected)
        assert figures[name] < FP32, (name, figures)
    return {"logits": figures.pop("logits"), "signals": max(figures.values())}


def _request(prompt: Sequence[int], method: ArgsGreedy | Plain) -> Request:
    return Request(prompt, method, max_tokens=NEW_TOKENS, seed=0)


def _generated(engine: Engine, method: ArgsGreedy | Plain, batch_size: int) -> list[Result]:
    requests = [_request(prompt, method) for prompt in prompts()]
    return generate(engine, requests, batch_size=batch_size)


def _transformers(made: Made, prompt: Sequence[int]) -> list[int]:
    """What transformers' own greedy search generates."""
    ids = torch.tensor([prompt])
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": NEW_TOKENS}
    found = made.hugging_face.generate(ids, do_sample=False, pad_token_id=0, **options)
    tokens: list[int] = found[0, len(prompt) :].tolist()
    return tokens


def _visible(made: Made, tokens: Sequence[int]) -> list[int]:
    """Without an end-of-sequence token, which one side may leave out."""
    return [token for token in tokens if token not in made.engine.manifest.eos_token_ids]


def _guided_by_forwards(made: Made, prompt: Sequence[int]) -> list[int]:
    """Guided tokens, each candidate a whole sequence of its own in the torch reference."""
    tokens = list(prompt)
    for _ in range(NEW_TOKENS):
        logits = made.torch_outputs([tokens])["logits"][0, -1]
        best = np.argsort(-logits, kind="stable")[: GUIDED.top_k]
        rewards = made.torch_outputs([[*tokens, int(i)] for i in best])["reward"][:, -1]
        tokens.append(int(best[np.argmax(logits[best] + GUIDED.weight * rewards)]))
        if tokens[-1] in made.engine.manifest.eos_token_ids:
            break
    return tokens[len(prompt) :]
