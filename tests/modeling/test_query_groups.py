"""L2: channels with fewer query heads for each key/value head than their base has.

8 query heads over 1 key/value head of the base, and 8 over 2: torch, its engine, and both cache
forms of the graph agree; the base's outputs keep their bits; copies are exact.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from otter_export import load_engine
from otter_export.base_model import BaseModel
from otter_export.channel_options import ChannelOptions, channel_config, fewest_key_value_heads
from otter_export.checkpoint import Checkpoint
from otter_export.errors import ConfigError
from otter_export.family import Space
from otter_export.graph.base import base_graph
from otter_export.graph.pipeline import run_passes, tensorrt
from otter_export.graph.widen import widen
from otter_export.initialization import copied_rows
from otter_export.modeling.otter_model import load_base, load_reference
from otter_export.modeling.torch_engine import TorchOptions, torch_engine
from otter_export.precision import TENSORRT
from tests import built, tiny
from tests.families.bases import Case, write_base
from tests.graph.in_place import InPlaceGraph
from tests.modeling.torch_pairs import TOLERANCE, close
from tests.runtime.fake_engine import ByteTokenizer
from tests.tree_steps import assert_equal_to_separate_forwards, candidates, ids

E = 16
_SIZES = {"num_attention_heads": 8, "head_dim": E}
#: Base key/value heads, H', H'kv.
RATIOS = [(1, 1, 1), (1, 2, 1), (1, 2, 2), (2, 2, 1), (2, 4, 2)]


def case(key_value_heads: int, model_type: str = "llama", **config: Any) -> Case:
    sizes = {**_SIZES, "num_key_value_heads": key_value_heads}
    return Case(model_type, model_type, {**sizes, **config})


#: What touches heads on their way: norms of each head and of all, windows, a fused projection, a
#: soft cap in eager attention.
FEATURES = [
    case(2, "qwen3"),
    case(2, "olmo2"),
    case(2, "phi3", sliding_window=8),
    case(2, "gemma2", sliding_window=8, query_pre_attn_scalar=24),
]


def make(
    root: Path, base: Case, heads: int, key_value_heads: int | None = None, **channel: Any
) -> Checkpoint:
    directory = tiny.write_checkpoint(
        root / "ck",
        base=write_base(base, root / "base"),
        heads=heads,
        key_value_heads=key_value_heads,
        signals=(tiny.REWARD, tiny.NEXT),
        **channel,
    )
    if "initialization" not in channel:
        built.randomize(directory, gain=0.5)
    return Checkpoint.open(directory)


def agree(checkpoint: Checkpoint, root: Path) -> None:
    """Torch, the engine's graph, the form of TensorRT, and decoding in torch give one answer."""
    tokens = np.random.default_rng(0).integers(3, 128, (2, 24))
    with torch.no_grad():
        output = load_reference(checkpoint)(torch.from_numpy(tokens))
        alone = load_base(checkpoint.base)(torch.from_numpy(tokens)).logits
    assert torch.equal(output.logits, alone)
    expected = {"logits": output.logits.numpy()}
    expected |= {name: signal.numpy() for name, signal in output.signals.items()}
    engine = built.build(checkpoint, root / "engine")
    in_place = base_graph(checkpoint.base)
    widen(in_place, checkpoint)
    run_passes(in_place, tensorrt(32).passes(checkpoint.base, TENSORRT["fp16"]))
    forms = [built.Graph.load(engine)(tokens)]
    forms.append(InPlaceGraph.of(in_place, root / "in_place")(tokens)[0])
    for found in forms:
        for name, values in expected.items():
            assert built.relative(found[name], values) < 1e-4, name
    options = TorchOptions(device="cpu", max_step=16)
    engines = [torch_engine(checkpoint, options), load_engine(engine, threads=1)]
    engines.append(torch_engine(checkpoint, dataclasses.replace(options, fused=True)))
    for one in engines:
        one.__dict__["tokenizer"] = ByteTokenizer()
    prompts = [*ids(1, 40), *ids(1, 7, 1), *ids(1, 23, 2)]
    step, *others = (candidates(one, prompts, [5, 9, 77]) for one in engines)
    for other in others:
        close(step, other, TOLERANCE["fp32"])
    assert_equal_to_separate_forwards(engines[0])


@pytest.mark.parametrize("ratio", RATIOS, ids=str)
def test_every_form_agrees(ratio: tuple[int, int, int], tmp_path: Path) -> None:
    base_heads, heads, key_value_heads = ratio
    checkpoint = make(tmp_path, case(base_heads), heads, key_value_heads)
    config = checkpoint.config
    assert (config.num_attention_heads, config.num_key_value_heads) == (heads, key_value_heads)
    agree(checkpoint, tmp_path)


@pytest.mark.parametrize("base", FEATURES, ids=lambda base: base.name)
def test_with_every_feature_of_heads(base: Case, tmp_path: Path) -> None:
    agree(make(tmp_path, base, 2), tmp_path)


@pytest.mark.parametrize("base", [case(2), *FEATURES], ids=lambda base: base.name)
def test_copies_stay_exact(base: Case, tmp_path: Path) -> None:
    """X' = x[S] at the end, and the channel's queries and keys are those of the copied heads."""
    checkpoint = make(tmp_path, base, 2, 2, initialization="copy")
    model = load_reference(checkpoint)
    tokens = torch.from_numpy(np.random.default_rng(1).integers(3, 128, (1, 24)))
    with torch.no_grad():
        state = model.base.base_model(input_ids=tokens).last_hidden_state
    size = checkpoint.base.dimensions.hidden_size
    copied = copied_rows(checkpoint.config, checkpoint.base, Space.HIDDEN)
    assert (state[..., size:] - state[..., :size][..., copied]).abs().max() < 2e-5


def test_the_copied_queries_are_those_that_read_the_copied_keys(tmp_path: Path) -> None:
    base = BaseModel.open(write_base(case(2), tmp_path / "base"))

    def heads(queries: int, keys: int, space: Space) -> list[int]:
        config = channel_config(base, ChannelOptions(heads=queries, key_value_heads=keys))
        rows = copied_rows(config, base, space).reshape(-1, E)
        assert (rows % E == np.arange(E)).all()
        return [int(head) for head in rows[:, 0] // E]

    assert heads(2, 2, Space.QUERY) == [0, 4] and heads(2, 2, Space.KEY) == [0, 1]
    assert heads(2, 1, Space.QUERY) == [0, 1] and heads(2, 1, Space.KEY) == [0]
    assert heads(4, 2, Space.QUERY) == [0, 1, 4, 5]
    assert heads(8, 2, Space.QUERY) == list(range(8))  # the base's proportion: the first ones


def test_a_training_step_moves_every_channel_tensor(tmp_path: Path) -> None:
    model = load_reference(make(tmp_path, case(1), 2))
    model.train()
    tokens = torch.from_numpy(np.random.default_rng(2).integers(3, 128, (2, 12)))
    output = model(tokens)
    sum(s.square().mean() for s in output.signals.values()).backward()
    for name, parameter in model.channel_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("heads", "group", "fewest"),
    [(8, 8, 1), (16, 8, 2), (1, 8, 1), (2, 8, 1), (3, 2, 3), (4, 2, 2), (6, 4, 2), (5, 1, 5)],
)
def test_the_fewest_key_value_heads(heads: int, group: int, fewest: int) -> None:
    assert fewest_key_value_heads(heads, group) == fewest


def test_what_a_channel_may_not_have(tmp_path: Path) -> None:
    base = BaseModel.open(write_base(case(2), tmp_path / "base"))
    with pytest.raises(ConfigError, match="may have as many query heads as in the base, 8 over 2"):
        channel_config(base, ChannelOptions(heads=8, key_value_heads=1))
    with pytest.raises(ConfigError, match="3 is not a multiple of num_key_value_heads 2"):
        channel_config(base, ChannelOptions(heads=3, key_value_heads=2))
    config = channel_config(base, ChannelOptions())
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 1)


def test_tensorrt_llm_needs_the_base_s_proportion(tmp_path: Path) -> None:
    from otter_export.converters import refusals

    base = BaseModel.open(write_base(case(2), tmp_path / "base"))
    same, fewer = (channel_config(base, ChannelOptions(heads=h)) for h in (4, 2))
    assert dict(refusals(base, same)) == {}
    assert "needs the base's proportion, 8 over 2" in dict(refusals(base, fewer))["trtllm"]
