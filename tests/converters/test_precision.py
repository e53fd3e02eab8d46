"""L2: int8, int4 and fp16 storage against references computed from the rounding alone.

The rounding of the weights is written out in numpy (tests/graph/test_weight_passes.py has the same
arithmetic against MatMulNBits alone). A checkpoint whose base weights are rounded so beforehand is
run in torch, so all that is left is float32 arithmetic, and for int8 and int4 the rounding of the
activations to 8 bits inside the kernel (accuracy level 4).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file, save_file

from otter_export.checkpoint import Checkpoint
from otter_export.graph.pipeline import lower, onnxruntime
from otter_export.modeling.otter_model import load_reference
from otter_export.signals import Signal
from tests import built
from tests.converters.conftest import tokens
from tests.graph.test_weight_passes import INT4, INT8, dequantized

Array = np.ndarray[Any, Any]
#: fp16 storage is float32 arithmetic on rounded weights, and so are int8 and int4 when the kernel
#: is told to leave the activations alone; then the fp32 tolerance of DESIGN holds.
PRECISIONS = ("fp16", "int8", "int4")
TOLERANCE = 1e-4
#: Of the engine as built, which rounds each block of activations to 1/254 of its largest value:
#: about ten products deep, in random directions. 2.9 % is the largest that was measured.
ACTIVATIONS = 6e-2
#: What the engines are off from the unrounded model at least: a check that the rounding is there.
ROUNDING = {"fp16": 1e-4, "int8": 2e-3, "int4": 3e-2}
_FLOAT32_ACCURACY = 1


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Widths of whole blocks (d 128, m 256), untied, so that every block has 128 weights."""
    base = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "seed": 3}
    checkpoint = built.random_checkpoint(
        tmp_path_factory.mktemp("wide") / "ck",
        # A channel that does not blow up, with no value in the middle of two codes.
        seed=4,
        base={**base, "tie_word_embeddings": False},
        # A saturated tanh would hide errors.
        signals=(Signal("reward", "value", "identity", None),),
    )
    file = checkpoint.directory / "model.safetensors"
    # Gains near one, so that a rounding error stays about as large as it is made.
    tensors = {k: v * np.float32(0.4 if v.ndim == 2 else 1) for k, v in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    return Checkpoint.open(checkpoint.directory)


def rounded(checkpoint: Checkpoint, precision: str, directory: Path) -> Checkpoint:
    """A copy of a checkpoint whose weights are rounded as the precision stores them.

    Of the channel those are what multiplies the base's states, in 8 bits.
    """
    directory.mkdir()
    for file in checkpoint.directory.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    tensors = {}
    for name, weight in load_file(directory / "model.safetensors").items():
        half = weight.astype(np.float16).astype(np.float32)
        if weight.ndim == 1:
            tensors[name] = weight
        elif precision == "fp16" or name == "model.embed_tokens.weight":
            tensors[name] = half
        else:
            small = precision == "int4" and name != "lm_head.weight"
            tensors[name] = dequantized(weight, INT4 if small else INT8).astype(np.float32)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    if precision != "fp16":
        channel = load_file(directory / "otter.safetensors")
        for name, weight in channel.items():
            if name.endswith(".otter.from_base"):
                channel[name] = dequantized(weight, INT8).astype(np.float32)
        save_file(channel, directory / "otter.safetensors", {"format": "pt"})
    return Checkpoint.open(directory)


def outputs(checkpoint: Checkpoint, ids: Array) -> dict[str, Array]:
    import torch

    with torch.no_grad():
        result = load_reference(checkpoint)(torch.from_numpy(ids))
    return {"logits": result.logits.numpy(), "reward": result.signals["reward"].numpy()}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_engine_equals_torch_on_rounded_weights(
    precision: str, wide: Checkpoint, tmp_path: Path
) -> None:
    ids = tokens(2, 16)
    engine = built.Graph.load(built.build(wide, tmp_path / "engine", precision=precision))(ids)
    model = lower(wide, onnxruntime(), precision)
    for node in model.graph:
        if node.op_type == "MatMulNBits":
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", _FLOAT32_ACCURACY)
    found = built.Graph.of(model, tmp_path / "float32")(ids)
    expected = outputs(rounded(wide, precision, tmp_path / "rounded"), ids)
    exact = outputs(wide, ids)
    for name in ("logits", "reward"):
        assert built.relative(found[name], expected[name]) < TOLERANCE
        assert built.relative(engine[name], expected[name]) < ACTIVATIONS
        assert built.relative(engine[name], exact[name]) > ROUNDING[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_base_logits_equal_the_unwidened_graph_bit_for_bit(
    precision: str, wide: Checkpoint, tmp_path: Path
) -> None:
    ids = tokens(2, 16)
    widened, base = (
        built.Graph.of(lower(wide, onnxruntime(), precision, widened=wide_), tmp_path / str(wide_))(
            ids
        )
        for wide_ in (True, False)
    )
    np.testing.assert_array_equal(widened["logits"], base["logits"])


@pytest.mark.parametrize(("precision", "base_bytes"), [("int8", 1), ("int4", 0.5), ("fp16", 2)])
def test_what_multiplies_base_states_shrinks_and_nothing_else(
    precision: str, base_bytes: float, wide: Checkpoint
) -> None:
    model = lower(wide, onnxruntime(), precision)
    name = {"fp16": "weight_half"}.get(precision, f"weight_{precision}")
    weight = model.graph.initializers[f"model.layers.0.mlp.down_proj.{name}"].const_value
    assert weight is not None and weight.nbytes == 128 * 256 * base_bytes
    head = f"lm_head.{'weight_half' if precision == 'fp16' else 'weight_int8'}"
    assert head in model.graph.initializers
    channel = {n: v for n, v in model.graph.initializers.items() if ".otter." in n}
    codes = {n for n, v in channel.items() if v.dtype is not None and v.dtype.name == "UINT8"}
    reads_base = {n for n in channel if ".otter.from_base" in n and "_scales" not in n}
    assert len(reads_base) == 2 * 7 and codes == (set() if precision == "fp16" else reads_base)
    assert all(channel[n].dtype is ir.DataType.FLOAT for n in channel.keys() - codes)
