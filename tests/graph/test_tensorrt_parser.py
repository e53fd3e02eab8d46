"""L2: TensorRT-RTX's own parser reads the file: every family, every precision, plugin or plain.

No GPU is needed to parse; building and running are tested elsewhere. Skipped where the package
tensorrt_rtx is absent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from otter_export.checkpoint import Checkpoint
from otter_export.converters.onnx import save_model
from otter_export.graph.pipeline import lower, tensorrt
from otter_export.precision import TENSORRT
from tests import tiny
from tests.graph.conftest import Over
from tests.graph.parsing import parse

PRECISIONS = tuple(TENSORRT)
CAPACITY = 48
FORMS = [(precision, False) for precision in PRECISIONS] + [("fp16", True), ("bf16", True)]
_TYPES = {"fp16": "HALF", "bf16": "BF16", "int8": "HALF", "int4": "HALF"}

Reports = dict[tuple[str, str, bool], Any]


@pytest.fixture(scope="module")
def reports(
    checkpoints: dict[str, Checkpoint], tmp_path_factory: pytest.TempPathFactory
) -> Reports:
    """One process for all plain files, one for those with the plugin."""
    root: Path = tmp_path_factory.mktemp("parser")
    found: Reports = {}
    for plugin in (False, True):
        files = {}
        for family, checkpoint in checkpoints.items():
            for precision in [p for p, with_plugin in FORMS if with_plugin == plugin]:
                directory = root / f"{family}-{precision}-{plugin}"
                directory.mkdir()
                save_model(
                    lower(checkpoint, tensorrt(CAPACITY, plugin=plugin), precision), directory
                )
                files[family, precision, plugin] = directory / "model.onnx"
        found |= dict(zip(files, parse(list(files.values()), root, plugin=plugin), strict=True))
    return found


#: Windows in all layers and in some, a soft cap, norms of heads, fused and partly rotated heads.
CASES = ("mistral-window", "gemma2", "gemma3", "phi3", "gpt_neox", "olmo2")


@pytest.fixture(scope="module")
def case_reports(over: Over, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root: Path = tmp_path_factory.mktemp("cases")
    for case in CASES:
        (root / case).mkdir()
        save_model(lower(over(case), tensorrt(CAPACITY), "fp16"), root / case)
    files = [root / case / "model.onnx" for case in CASES]
    return dict(zip(CASES, parse(files, root), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_the_parser_takes_windows_caps_and_norms_of_heads(
    case: str, over: Over, case_reports: dict[str, Any]
) -> None:
    report, base = case_reports[case], over(case).base
    assert report["parsed"] and not report["errors"]
    layers, attentions = report["layers"], 2 * base.dimensions.num_hidden_layers
    assert layers["KV_CACHE_UPDATE"] == layers["ROTARY_EMBEDDING"] == 2 * attentions
    # With a soft cap, attention is products and a softmax of its own.
    written_out = case == "gemma2"
    assert layers.get("ATTENTION_INPUT", 0) == (0 if written_out else attentions)
    assert layers.get("SOFTMAX", 0) == (attentions if written_out else 0)
    assert report["inputs"]["attention_mask"] == ["BOOL", [-1, 1, -1, CAPACITY]]
    assert report["reduced"] == ["FLOAT"] and "NORMALIZATION" not in layers


@pytest.mark.parametrize("family", list(tiny.CONFIGS))
@pytest.mark.parametrize(("precision", "plugin"), FORMS)
def test_the_parser_makes_the_layers_that_are_meant(
    family: str, precision: str, plugin: bool, checkpoints: dict[str, Checkpoint], reports: Reports
) -> None:
    report = reports[family, precision, plugin]
    assert report["parsed"] and not report["errors"]
    base = checkpoints[family].base
    layers, projections = report["layers"], len(base.sites.projections)
    attentions = 2 * base.dimensions.num_hidden_layers
    assert layers["KV_CACHE_UPDATE"] == 2 * attentions
    assert layers["ATTENTION_INPUT"] == layers["ATTENTION_OUTPUT"] == attentions
    assert layers.get("ROTARY_EMBEDDING", 0) == (0 if family == "gpt2" else 2 * attentions)
    assert layers.get("PLUGIN_V3", 0) == (projections if plugin else 0)
    coded = projections + 1 if precision in ("int8", "int4") else 0
    assert layers.get("DEQUANTIZE", 0) == coded
    embeddings = len(base.sites.embeddings)
    # Embedding projections, the head, two signals; each plain projection has three products.
    plain = embeddings + 3
    assert layers["MATRIX_MULTIPLY"] == plain + (0 if plugin else 3 * projections)
    # Norm statistics: one reduction for both streams (two where there is a mean), in float32.
    assert report["reduced"] == ["FLOAT"]
    norms = len(base.sites.norms)
    assert layers["REDUCE"] == norms * (2 if family == "gpt2" else 1)
    assert "NORMALIZATION" not in layers


@pytest.mark.parametrize("family", list(tiny.CONFIGS))
@pytest.mark.parametrize(("precision", "plugin"), FORMS)
def test_the_network_has_the_inputs_and_outputs_of_the_contract(
    family: str, precision: str, plugin: bool, checkpoints: dict[str, Checkpoint], reports: Reports
) -> None:
    report, half = reports[family, precision, plugin], _TYPES[precision]
    checkpoint = checkpoints[family]
    base, config = checkpoint.base.dimensions, checkpoint.config
    inputs = {
        "input_ids": ["INT64", [-1, -1]],
        "position_ids": ["INT64", [-1, -1]],
        "attention_mask": ["BOOL", [-1, 1, -1, CAPACITY]],
        "write_indices": ["INT64", [-1]],
        "kept_rows": ["INT64", [-1, -1]],
    }
    outputs = {
        "logits": ["FLOAT", [-1, -1, base.vocab_size]],
        "reward": ["FLOAT", [-1, -1]],
        "next": ["FLOAT", [-1, -1, base.vocab_size]],
    }
    kinds = (
        ("past_key_values", "present", base.num_key_value_heads, base.head_dim),
        ("otter_key_values", "otter_present", config.num_key_value_heads, config.head_dim),
    )
    for past, present, heads, size in kinds:
        for layer in range(base.num_hidden_layers):
            for part in ("key", "value"):
                cache = [half, [-1, heads, CAPACITY, size]]
                inputs[f"{past}.{layer}.{part}"] = cache
                outputs[f"{present}.{layer}.{part}"] = cache
    assert report["inputs"] == inputs
    assert report["outputs"] == outputs
