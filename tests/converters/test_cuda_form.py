"""L2: the GPU form of the ``onnx`` target, checked as a graph and run on the CPU provider.

What only a GPU can show (its kernels and speed) is not tested here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from otter_export.converters.onnx import OnnxOptions
from otter_export.graph.pipeline import lower, onnxruntime
from tests import built, tiny
from tests.converters.conftest import Built, tokens

#: Relative to the largest magnitude. fp32 as on the CPU; fp16: eleven bits of mantissa over a
#: dozen roundings a layer.
PRECISIONS = {"fp32": 1e-4, "fp16": 1e-2}
FAMILIES = list(tiny.CONFIGS)
#: The only op that is not ONNX's own; ONNX Runtime has a CUDA kernel for it.
CONTRIBUTED = {"FusedMatMul"}


@pytest.fixture(scope="module")
def directories(
    families: dict[str, Built], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Path]:
    """Engines by family and precision."""
    root = tmp_path_factory.mktemp("cuda")
    return {
        (family, precision): built.build(
            made.checkpoint,
            root / f"{family}-{precision}",
            precision=precision,
            options=OnnxOptions("cuda"),
        )
        for family, made in families.items()
        for precision in PRECISIONS
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_cpu_provider_runs_it_and_it_equals_torch(
    family: str,
    precision: str,
    directories: dict[tuple[str, str], Path],
    families: dict[str, Built],
) -> None:
    ids = tokens(2, 16)
    found = built.Graph.load(directories[family, precision])(ids)
    for name, expected in families[family].torch(ids).items():
        assert found[name].dtype == np.float32
        assert built.relative(found[name], expected) < PRECISIONS[precision], name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_graph_is_valid_onnx(
    family: str, precision: str, directories: dict[tuple[str, str], Path]
) -> None:
    path = directories[family, precision] / "model.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert not model.functions
    contributed = {node.op_type for node in model.graph.node if node.domain}
    assert contributed == CONTRIBUTED


@pytest.mark.parametrize("family", FAMILIES)
def test_fp16_inside_and_float32_where_clients_and_norms_need_it(
    family: str, families: dict[str, Built]
) -> None:
    model = lower(families[family].checkpoint, onnxruntime("cuda"), "fp16")
    types = {v.name: v.dtype and v.dtype.name for v in (*model.graph.inputs, *model.graph.outputs)}
    assert {types[name] for name in ("logits", "reward", "next")} == {"FLOAT"}
    assert {t for name, t in types.items() if "key_values" in str(name)} == {"FLOAT16"}
    assert {t for name, t in types.items() if "present" in str(name)} == {"FLOAT16"}
    weights = {
        name: value.dtype and value.dtype.name
        for name, value in model.graph.initializers.items()
        if name.endswith((".weight", ".weight_t", ".bias")) or ".otter." in name
    }
    assert set(weights.values()) == {"FLOAT16"}
    for node in model.graph:
        if node.op_type in ("MatMul", "FusedMatMul", "Softmax"):
            assert node.outputs[0].dtype is not None and node.outputs[0].dtype.name == "FLOAT16"
        if node.op_type == "ReduceMean":  # statistics, inlined from com.otter
            wide = node.inputs[0]
            while wide is not None and (producer := wide.producer()) and producer.op_type != "Cast":
                wide = producer.inputs[0]
            assert producer is not None and producer.attributes["to"].as_int() == 1
