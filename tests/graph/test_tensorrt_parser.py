"""L2: TensorRT-RTX's own parser reads the file: every family, every precision, plugin or plain.

No GPU is needed to parse; building and running are tested elsewhere. Skipped where the package
tensorrt_rtx is absent.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from otter_export.checkpoint import Checkpoint
from otter_export.converters.external_data import save_model
from otter_export.graph.pipeline import lower, tensorrt
from otter_export.precision import TENSORRT
from tests import built, tiny
from tests.graph.conftest import Over

PRECISIONS = tuple(TENSORRT)
CAPACITY = 48
FORMS = [(precision, False) for precision in PRECISIONS] + [("fp16", True), ("bf16", True)]
_TYPES = {"fp16": "HALF", "bf16": "BF16", "int8": "HALF", "int4": "HALF"}

Reports = dict[tuple[str, str, bool], Any]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the parser finds TensorRT-RTX by its unversioned name.

    The wheel has none.
    """
    libraries = importlib.util.find_spec("tensorrt_rtx_libs")
    if importlib.util.find_spec("tensorrt_rtx") is None or libraries is None:
        pytest.skip("the package tensorrt_rtx is not installed")
    root: Path = tmp_path_factory.mktemp("library")
    folder = Path(next(iter(libraries.submodule_search_locations or [])))
    (root / "libtensorrt_rtx.so").symlink_to(folder / "libtensorrt_rtx.so.1")
    return root


def parse(models: dict[Any, ir.Model], root: Path, library: Path, *options: str) -> dict[Any, Any]:
    """What becomes of each model, all in one process."""
    files = []
    for i, model in enumerate(models.values()):
        directory = root / f"{i}{''.join(options)}"
        directory.mkdir()
        save_model(model, directory)
        files.append(str(directory / "model.onnx"))
    script = str(Path(__file__).with_name("parse_networks.py"))
    output = subprocess.run(
        [sys.executable, script, *options, *files],
        env={**os.environ, "LD_LIBRARY_PATH": str(library)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert output.returncode == 0, output.stderr[-2000:]
    lines = [json.loads(line) for line in output.stdout.splitlines() if line.startswith("{")]
    return dict(zip(models, lines, strict=True))


@pytest.fixture(scope="module")
def reports(
    checkpoints: dict[str, Checkpoint], library: Path, tmp_path_factory: pytest.TempPathFactory
) -> Reports:
    """One process for all plain files, one for those with the plugin."""
    root: Path = tmp_path_factory.mktemp("parser")
    found: Reports = {}
    for plugin in (False, True):
        pipeline = tensorrt(CAPACITY, plugin=plugin)
        models = {
            (family, precision, plugin): lower(checkpoint, pipeline, precision)
            for family, checkpoint in checkpoints.items()
            for precision in [p for p, with_plugin in FORMS if with_plugin == plugin]
        }
        found |= parse(models, root, library, *(["--plugin"] if plugin else []))
    return found


#: Windows in all layers and in some, a soft cap, norms of heads, fused and partly rotated heads.
CASES = ("mistral-window", "gemma2", "gemma3", "phi3", "gpt_neox", "olmo2")


@pytest.fixture(scope="module")
def case_reports(
    over: Over, library: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[Any, Any]:
    models = {case: lower(over(case), tensorrt(CAPACITY), "fp16") for case in CASES}
    return parse(models, tmp_path_factory.mktemp("cases"), library)


@pytest.mark.parametrize("case", CASES)
def test_the_parser_takes_windows_caps_and_norms_of_heads(
    case: str, over: Over, case_reports: dict[Any, Any]
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


#: Shapes of a channel over two layers.
SHAPES = ((1, "own"), (1, "shared"), (0, "shared"), (2, "own"))


@pytest.fixture(scope="module")
def shape_reports(library: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    root: Path = tmp_path_factory.mktemp("shapes")
    base, signals = tiny.write_base(root / "base"), (tiny.REWARD, tiny.NEXT)
    checkpoints = {
        shape: built.checkpoint_over(
            base, root / f"{shape}", signals=signals, first_layer=shape[0], attention=shape[1]
        )
        for shape in SHAPES
    }
    found = {}
    for plugin in (False, True):
        pipeline = tensorrt(CAPACITY, plugin=plugin)
        models = {(*s, plugin): lower(c, pipeline, "fp16") for s, c in checkpoints.items()}
        found |= parse(models, root, library, *(["--plugin"] if plugin else []))
    return found


@pytest.mark.parametrize("plugin", [False, True])
@pytest.mark.parametrize(("first", "attention"), SHAPES)
def test_the_parser_takes_every_shape_of_a_channel(
    first: int, attention: str, plugin: bool, shape_reports: dict[Any, Any]
) -> None:
    report = shape_reports[first, attention, plugin]
    assert report["parsed"] and not report["errors"]
    parts, widened = {"own": (2, 7), "shared": (1, 5)}[attention], 2 - first
    layers = report["layers"]
    assert layers["KV_CACHE_UPDATE"] == 4 + parts[0] * widened
    assert layers["ATTENTION_INPUT"] == 2 + widened
    assert layers.get("PLUGIN_V3", 0) == (parts[1] * widened if plugin else 0)
    caches = [name for name in report["inputs"] if name.startswith("otter_")]
    assert len(caches) == parts[0] * widened


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
