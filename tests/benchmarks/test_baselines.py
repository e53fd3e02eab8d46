"""L4: published methods, given a channel's scores, choose the tokens of the engine's own methods.

The oracle is independent: a loop that reads whole texts in torch, or copies caches, against one
tree step over one cache in ONNX Runtime. What it scores with is the same checkpoint's channel.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from benchmarks.baselines.args import args
from benchmarks.baselines.args_cached import args_cached
from benchmarks.baselines.model import Counting, Model, best
from benchmarks.baselines.onnx_files import write_base, write_reward_model
from benchmarks.baselines.onnx_model import OnnxModel
from benchmarks.baselines.pargs import pargs
from benchmarks.baselines.plain import plain
from benchmarks.baselines.q_style import q_style
from benchmarks.baselines.rad import rad
from benchmarks.baselines.torch_model import TorchModel, language_model, reward_model
from otter_export import ArgsGreedy, Plain, Request, generate, load_engine
from otter_export.checkpoint import Checkpoint
from otter_export.modeling.otter_model import load_base, load_reference
from otter_export.runtime.engine import Engine
from otter_export.signals import Signal
from tests import built

PROMPT = [3, 1, 4, 1, 5]
COUNT = 24
K, WEIGHT = 5, 30.0
Method = Callable[..., Iterator[int]]
#: By kind of signal: a value in [0, 1], where RAD's clamp changes nothing.
SIGNALS = (
    Signal("reward", activation="sigmoid", bounds=(0.0, 1.0)),
    Signal("next", "q_value"),
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    directory = tmp_path_factory.mktemp("baselines")
    return built.random_checkpoint(directory / "checkpoint", signals=SIGNALS)


@pytest.fixture(scope="module")
def engine(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    directory = tmp_path_factory.mktemp("engine") / "engine"
    return load_engine(built.build(checkpoint, directory))


@pytest.fixture(scope="module")
def base(checkpoint: Checkpoint) -> Model:
    return language_model(load_base(checkpoint.base))


@pytest.fixture(scope="module")
def rewards(checkpoint: Checkpoint) -> dict[str, Model]:
    """The checkpoint's own signals, each as if it were a reward model's output."""
    model = load_reference(checkpoint)

    def last(name: str) -> Model:
        return TorchModel(model, lambda answer: answer.signals[name][:, -1])

    return {signal.name: last(signal.name) for signal in SIGNALS}


def ours(engine: Engine, signal: str, weight: float = WEIGHT) -> list[int]:
    method = ArgsGreedy(top_k=K, weight=weight, signal=signal)
    return list(generate(engine, Request(PROMPT, method, max_tokens=COUNT))[0].token_ids)


def first(tokens: Iterator[int], count: int = COUNT) -> list[int]:
    return list(itertools.islice(tokens, count))


@pytest.mark.parametrize("method", [args, args_cached, rad, pargs])
def test_scores_of_texts(
    method: Method, engine: Engine, base: Model, rewards: dict[str, Model]
) -> None:
    expected = ours(engine, "reward")
    # Not what the base would say, nor short of the end: then nothing would have been compared.
    assert len(expected) == COUNT and expected != ours(engine, "reward", weight=0.0)
    found = first(method(base, rewards["reward"], PROMPT, k=K, weight=WEIGHT))
    assert found == expected


def test_scores_of_next_tokens(engine: Engine, base: Model, rewards: dict[str, Model]) -> None:
    expected = ours(engine, "next")
    assert len(expected) == COUNT and expected != ours(engine, "next", weight=0.0)
    assert first(q_style(base, rewards["next"], PROMPT, k=K, weight=WEIGHT)) == expected


def test_no_reward(engine: Engine, base: Model) -> None:
    result = generate(engine, Request(PROMPT, Plain(), max_tokens=COUNT))[0]
    assert first(plain(base, PROMPT)) == list(result.token_ids)


class Constant:
    """A model that says the same whatever it reads."""

    def __init__(self, output: list[Any]) -> None:
        self._output = np.array(output, np.float32)

    def read(self, cache: Any, ids: Sequence[Sequence[int]]) -> tuple[Any, Any]:
        # One row of logits, or one reward for each text of two.
        return (self._output[: len(ids)] if self._output.ndim == 1 else self._output), cache

    def rows(self, cache: Any, chosen: Sequence[int]) -> Any:
        return cache


def test_rad_clamps_what_args_does_not() -> None:
    base, reward = Constant([[3.0, 2.5, 0.0]]), Constant([0.0, 7.0])
    # 2.5 + 0.1 * 7 is above 3, 2.5 + 0.1 * 1 is not.
    assert first(args_cached(base, reward, PROMPT, k=2, weight=0.1), 2) == [1, 1]
    assert first(rad(base, reward, PROMPT, k=2, weight=0.1), 2) == [0, 0]


@hypothesis.given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.integers(1, 12))
def test_candidates_are_the_best_and_of_equal_ones_the_first(values: list[int], k: int) -> None:
    k = min(k, len(values))
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    assert best(np.array(values, np.float32), k).tolist() == expected


@pytest.mark.parametrize(
    ("method", "forwards", "tokens"),
    [
        # Texts of 6, 7 and 8 tokens, K of each.
        (args, 3, K * (6 + 7 + 8)),
        (pargs, 3 * K, K * (6 + 7 + 8)),
        # The prompt, then K rows a token.
        (args_cached, 1 + 3, 5 + 3 * K),
        (rad, 1 + 3, 5 + 3 * K),
        # The prompt, then each token that was chosen but the last.
        (q_style, 1 + 2, 5 + 2),
    ],
)
def test_the_work_of_the_reward_model(
    method: Method, forwards: int, tokens: int, base: Model, rewards: dict[str, Model]
) -> None:
    read, reward = Counting(base), Counting(rewards["next" if method is q_style else "reward"])
    first(method(read, reward, PROMPT, k=K, weight=WEIGHT), 3)
    assert (read.forwards, read.tokens) == (1 + 2, 5 + 2)
    assert (reward.forwards, reward.tokens) == (forwards, tokens)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_same_on_our_kernels(
    precision: str, checkpoint: Checkpoint, base: Model, tmp_path: Path
) -> None:
    """Base and reward model as ONNX graphs; a cache changes nothing, and the body is the base's."""
    models: dict[str, Any] = {}
    for name, write in {"base": write_base, "reward": write_reward_model}.items():
        (tmp_path / name).mkdir()
        write(checkpoint, precision, tmp_path / name)
        models[name] = OnnxModel(tmp_path / name, 1, scalar=name == "reward")
    whole = first(args(models["base"], models["reward"], PROMPT, k=K, weight=WEIGHT), 12)
    assert whole == first(
        args_cached(models["base"], models["reward"], PROMPT, k=K, weight=WEIGHT), 12
    )
    assert whole != first(plain(models["base"], PROMPT), 12)
    if precision == "fp32":
        logits, _ = models["base"].read(None, [PROMPT])
        # Sums of 64 products in another order.
        np.testing.assert_allclose(logits, base.read(None, [PROMPT])[0], rtol=0, atol=1e-4)


def test_a_reward_model_of_torch_is_a_function_of_the_text(checkpoint: Checkpoint) -> None:
    model = reward_model(load_base(checkpoint.base))
    whole, _ = model.read(None, [PROMPT, PROMPT[::-1]])
    _, cache = model.read(None, [PROMPT[:3]])
    stepped, _ = model.read(model.rows(cache, [0]), [PROMPT[3:]])
    assert whole.shape == (2,) and whole[0] != whole[1]
    np.testing.assert_allclose(stepped, whole[:1], rtol=0, atol=1e-5)
