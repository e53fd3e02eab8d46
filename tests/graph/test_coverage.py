"""L1: every registered rule, pass, family, target and precision has its case.

A new entry fails here until it is tested; there is no other list to keep.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from otter_export.checkpoint import Checkpoint
from otter_export.converters import TARGETS
from otter_export.graph.pipeline import onnxruntime, tensorrt
from otter_export.graph.rules import RULES
from otter_export.precision import ONNX_RUNTIME, TENSORRT
from tests import tiny
from tests.graph import test_rules

#: Passes of onnx_ir itself, which tests them; here they run in every build.
FOREIGN = {
    "CommonSubexpressionEliminationPass",
    "InlinePass",
    "LiftConstantsToInitializersPass",
    "RemoveUnusedNodesPass",
    "RemoveUnusedFunctionsPass",
    "RemoveUnusedOpsetsPass",
}
TESTS = Path(__file__).parent


def test_every_rule_is_applied_in_test_rules() -> None:
    source = inspect.getsource(test_rules)
    applied = set(re.findall(r"= ([A-Z]\w+) (?:<|\(|\{)", source)) | set(test_rules.ELEMENTWISE)
    assert set(RULES) <= applied


def test_every_pass_of_every_pipeline_has_its_tests(checkpoints: dict[str, Checkpoint]) -> None:
    used = {
        type(one).__name__
        for checkpoint in checkpoints.values()
        for provider, precisions in ONNX_RUNTIME.items()
        for precision in precisions.values()
        for one in onnxruntime(provider).passes(checkpoint.base, precision)
    }
    used |= {
        type(one).__name__
        for checkpoint in checkpoints.values()
        for precision in TENSORRT.values()
        for plugin in (False, True)
        for one in tensorrt(32, plugin=plugin).passes(checkpoint.base, precision)
    }
    text = "".join(path.read_text() for path in TESTS.glob("test_*_passes.py"))
    tested = set(re.findall(r"(\w+)\([^()]*(?:\([^()]*\))?[^()]*\)\(", text))
    assert used - FOREIGN <= tested


def test_every_pass_file_is_in_a_pipeline() -> None:
    import otter_export.graph.pipeline as pipeline

    folder = Path(inspect.getfile(pipeline)).parent / "passes"
    imported = set(re.findall(r"graph\.passes\.(\w+)", inspect.getsource(pipeline)))
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == imported


def test_every_family_target_and_precision_is_built_and_compared() -> None:
    """Names what tests/converters and test_tensorrt_*.py build; see there.

    ``trtllm`` and ``vllm`` write no graph: tests/converters/tensorrt_llm, tests/plugins/vllm.
    """
    from tests.converters import test_cuda_form, test_parity, test_precision
    from tests.graph import test_tensorrt_parser, test_tensorrt_precisions

    assert set(TARGETS) == {"onnx", "trt", "trtllm", "vllm"}
    assert {case.family for case in test_parity.CASES} == set(tiny.CONFIGS)
    built = {("cpu", "fp32"), *(("cpu", p) for p in test_precision.PRECISIONS)}
    built |= {("cuda", p) for p in test_cuda_form.PRECISIONS}
    assert built == {(ep, p) for ep, precisions in ONNX_RUNTIME.items() for p in precisions}
    assert {*test_tensorrt_precisions.STORED, "fp16", "bf16"} == set(TENSORRT)
    assert set(test_tensorrt_parser.PRECISIONS) == set(TENSORRT)


@pytest.mark.parametrize("op", list(RULES))
def test_rules_are_rules_of_their_op(op: str) -> None:
    rule = RULES.load(op)
    assert rule.op_type == op
    assert rule.shape
