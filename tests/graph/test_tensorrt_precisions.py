"""L2: int8 and int4 of the TensorRT form against torch on weights that were rounded beforehand.

A checkpoint whose base weights are what the codes stand for is run in torch, float32. What is left
is float16 arithmetic, so the bound of the form itself holds: 2e-2 of the largest magnitude
(5e-3 is the largest that was measured).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.numpy import load_file, save_file

from otter_export.checkpoint import Checkpoint
from otter_export.graph.passes.weight_only import encode
from otter_export.graph.pipeline import lower, tensorrt
from otter_export.modeling.otter_model import load_reference
from tests import built, tiny
from tests.graph.in_place import InPlaceGraph

#: Bits and block of projections; of those that read the inner width, and of the head.
STORED = {"int8": ((8, None), (8, None)), "int4": ((4, 32), (8, None))}
HALF = 2e-2
#: The rounding itself moves the outputs by more than this: a check that it is there.
ROUNDING = {"int8": 3e-3, "int4": 5e-2}


@pytest.fixture(scope="module", params=["llama", "gpt2", "qwen2"])
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    """Untied, so that the table that is gathered stays as it is while the head is rounded."""
    directory = tmp_path_factory.mktemp(request.param) / "ck"
    base = {} if request.param == "gpt2" else {"tie_word_embeddings": False}
    return built.random_checkpoint(
        directory, request.param, base=base, signals=(tiny.REWARD, tiny.NEXT)
    )


def rounded(checkpoint: Checkpoint, precision: str, directory: Path) -> Checkpoint:
    """A copy whose projections (and head, if it is not tied) are what their codes stand for."""
    shutil.copytree(checkpoint.base.directory, directory / "base")
    file = directory / "base" / "model.safetensors"
    tensors = load_file(file)
    for name, values in tensors.items():
        if values.ndim == 2 and not any(part in name for part in ("embed", "wte", "wpe")):
            # GPT-2 stores [in, out].
            turned = "transformer.h" in name
            sensitive = any(part in name for part in ("lm_head", "down_proj", "mlp.c_proj"))
            bits, block = STORED[precision][sensitive]
            weight = values.T if turned else values
            codes, scales = encode(weight.astype(np.float16), bits, block or weight.shape[1])
            wide = np.repeat(scales.astype(np.float32), block or weight.shape[1], axis=0)
            dense = codes.astype(np.float32) * wide
            tensors[name] = np.ascontiguousarray(dense if turned else dense.T)
    save_file(tensors, file, {"format": "pt"})
    shutil.copytree(checkpoint.directory, directory / "ck")
    for path in (directory / "base").iterdir():
        shutil.copyfile(path, directory / "ck" / path.name)
    return Checkpoint.open(directory / "ck")


def torch_outputs(checkpoint: Checkpoint, ids: np.ndarray[Any, Any]) -> dict[str, Any]:
    with torch.no_grad():
        output = load_reference(checkpoint)(torch.from_numpy(ids))
    return {"logits": output.logits.numpy(), "reward": output.signals["reward"].numpy()}


@pytest.mark.parametrize("precision", list(STORED))
def test_codes_equal_torch_on_rounded_weights(
    checkpoint: Checkpoint, precision: str, tmp_path: Path
) -> None:
    model = lower(checkpoint, tensorrt(32), precision)
    ids = np.random.default_rng(0).integers(3, 128, (2, 16))
    # ONNX Runtime's own fusion of the pair would also round the activations to 8 bits.
    found, _ = InPlaceGraph.of(model, tmp_path / "graph", optimize=False)(ids)
    tied = checkpoint.base.dimensions.tie_word_embeddings
    expected = torch_outputs(rounded(checkpoint, precision, tmp_path), ids)
    unrounded = torch_outputs(checkpoint, ids)
    for name, values in expected.items():
        if name == "logits" and tied:
            continue  # GPT-2: one matrix for table and head in torch, and only the head is rounded
        assert built.relative(found[name], values) < HALF, name
    for name, values in unrounded.items():
        assert built.relative(found[name], values) > ROUNDING[precision], name


@pytest.mark.parametrize("precision", list(STORED))
def test_what_is_stored_in_codes(checkpoint: Checkpoint, precision: str) -> None:
    """Every base projection and the head; no table, no norm, nothing of the channel."""
    graph = lower(checkpoint, tensorrt(32, plugin=True), precision).graph
    codes = {
        str(name): value.dtype
        for name, value in graph.initializers.items()
        if value.dtype in (ir.DataType.INT8, ir.DataType.INT4)
    }
    base = checkpoint.base
    head = base.family.embeddings[0][0] if base.dimensions.tie_word_embeddings else "lm_head"
    expected = {}
    for site in base.sites.projections:
        bits = 4 if precision == "int4" and "down_proj" not in site.graph_name else 8
        expected[f"{site.graph_name}.weight_int{bits}"] = ir.DataType[f"INT{bits}"]
    assert codes == {**expected, f"{head}.weight_int8": ir.DataType.INT8}
    # The kernel multiplies half precision: with codes the plain form is built.
    assert not any(node.op_type == "OtterLinear" for node in graph)
    floats = {v.dtype for v in graph.initializers.values()} - {*codes.values(), ir.DataType.INT64}
    assert floats == {ir.DataType.FLOAT16, ir.DataType.FLOAT}
    large = [
        name
        for name, value in graph.initializers.items()
        if value.dtype == ir.DataType.FLOAT and value.const_value.size > 1
    ]
    assert large == []
