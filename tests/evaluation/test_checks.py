"""L2: every check passes for a sound engine of every kind, and fails for the fault it is for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from otter_export.errors import EngineError
from otter_export.evaluation import decoding_checks, file_checks, parity_checks, signal_checks
from otter_export.evaluation.check import CheckResult, Limit, decide
from otter_export.evaluation.counting_engine import CountingEngine
from otter_export.evaluation.subject import Subject
from otter_export.evaluation.verification import CHECKS
from otter_export.runtime.generation import generate
from otter_export.runtime.methods.args_greedy import ArgsGreedy
from otter_export.runtime.methods.experts import Experts
from tests.evaluation import spoil
from tests.evaluation.conftest import Build, subject_of
from tests.tiny import CONFIGS

Q = "model.layers.1.self_attn.q_proj.weight"
#: Check to a precision for which it does not apply.
NOT_FOR = {"exact kernels": ("fp32", "fp16"), "precision": ("fp32",)}


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_a_sound_engine_passes_every_check(engine: Build, precision: str, family: str) -> None:
    subject = subject_of(engine(precision, family))
    results = {check.name: check.run(subject) for check in CHECKS}
    for name, result in results.items():
        expected = None if precision in NOT_FOR.get(name, ()) else True
        assert result.passed is expected, result
        assert result.name == name
        if expected:
            assert result.limit is not None and result.limit.reason
    # Far inside the limits, not just within: what is left is float32 rounding.
    for name in ("tree step", "prefill"):
        assert results[name].measured is not None and results[name].measured < 2e-5  # type: ignore[operator]


def test_numbers_beside_the_gate(engine: Build) -> None:
    subject = subject_of(engine("int4"))
    numbers = parity_checks.logits(subject).numbers
    assert numbers["rows"] == sum(map(len, subject.prompt_ids)) == 17
    assert 0 < numbers["mean"] < numbers["max"]
    assert 0.5 < numbers["top-1"] <= 1 and 0.5 < numbers["top-10"] <= 1
    precision = parity_checks.precision(subject).numbers
    assert 0 < precision["KL mean"] < precision["KL max"]
    # Rounding weights costs more than running the rounded weights with rounded activations.
    assert precision["logits mean / spread"] > parity_checks.logits(subject).measured  # type: ignore[operator]


def fails(result: CheckResult, *words: str) -> None:
    assert result.passed is False, result
    text = " ".join(result.notes)
    for word in words:
        assert word in text, text


def test_files_a_flipped_byte(copied: Build) -> None:
    engine = copied()
    spoil.flip_byte(engine / "model.onnx.data")
    fails(file_checks.files(subject_of(engine)), "model.onnx.data is not what was built")


def test_files_data_that_engine_json_does_not_list(copied: Build) -> None:
    """Taking a file off the list would let it change unseen."""
    engine = copied()
    subject = subject_of(engine)
    kept = tuple(f for f in subject.manifest.files if f.path != "model.onnx.data")
    dataclasses.replace(subject.manifest, files=kept).save(engine)
    fails(file_checks.files(subject_of(engine)), "model.onnx.data is read", "not listed")


def test_source_another_channel(copied: Build) -> None:
    engine = copied()
    spoil.edit_tensor(engine.parent / "llama", "signals.reward.weight", negate)
    fails(file_checks.source(subject_of(engine)), "otter.safetensors", "not what the engine")


def test_source_an_engine_that_names_none(engine: Build) -> None:
    subject = subject_of(engine())
    subject.manifest = dataclasses.replace(subject.manifest, source={})
    fails(file_checks.source(subject), "otter_config.json", "otter.safetensors")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_finite_a_single_number(copied: Build, value: float) -> None:
    engine = copied()

    def spoiled(array: np.ndarray) -> None:
        array.flat[3] = value

    spoil.edit_tensor(engine.parent / "llama", "model.norm.otter.weight", spoiled)
    fails(file_checks.finite(subject_of(engine)), "model.norm.otter.weight holds NaN or infinity")


def negate(array: np.ndarray) -> None:
    array *= -1


def nudge(array: np.ndarray) -> None:
    array.flat[0] = np.nextafter(array.flat[0], np.float32(np.inf))


def swap_layers(engine: Path) -> None:
    """Exchange one inserted tensor of the two layers."""
    names = [f"model.layers.{i}.self_attn.o_proj.otter.from_base_t" for i in (0, 1)]
    kept: list[np.ndarray] = []
    spoil.edit_weight(engine, names[0], lambda array: kept.append(array.copy()))

    def put(array: np.ndarray) -> None:
        kept.append(array.copy())
        array[:] = kept[0]

    spoil.edit_weight(engine, names[1], put)

    def put_back(array: np.ndarray) -> None:
        array[:] = kept[1]

    spoil.edit_weight(engine, names[0], put_back)


def test_weights_two_channel_tensors_exchanged(copied: Build) -> None:
    engine = copied()
    swap_layers(engine)
    subject = subject_of(engine)
    assert file_checks.files(subject).passed
    fails(file_checks.weights(subject), "layers.0", "layers.1", "o_proj.otter.from_base_t")
    # The channel is wrong and the base is untouched, which the outputs show too.
    fails(parity_checks.signals(subject))
    assert parity_checks.logits(subject).passed
    assert parity_checks.base(subject).passed


def test_weights_and_base_one_unit_in_the_last_place(copied: Build) -> None:
    """Too little for any tolerance; the two checks that compare bits see it."""
    engine = copied()
    spoil.edit_weight(engine, "model.layers.0.mlp.gate_proj.weight", nudge)
    subject = subject_of(engine)
    assert parity_checks.logits(subject).passed
    fails(file_checks.weights(subject), "1 of 6144 values differ")
    fails(parity_checks.base(subject))


def test_logits_a_perturbed_weight(copied: Build) -> None:
    engine = copied()

    def perturb(array: np.ndarray) -> None:
        array[:, :8] += 0.5

    spoil.edit_weight(engine, Q, perturb)
    subject = subject_of(engine)
    fails(parity_checks.logits(subject))
    fails(file_checks.weights(subject), Q)


def wrong_scale(graph: ir.Graph) -> None:
    """Attention scores 2 % too large: a graph that is wrong with weights that are right."""
    for node in graph:
        if "alpha" in node.attributes:
            alpha = node.attributes["alpha"].as_float() * 1.02
            node.attributes["alpha"] = ir.AttrFloat32("alpha", alpha)


def turned_prefix(graph: ir.Graph) -> None:
    """Keys change their sign when they are read: a forward pass over a prompt cannot see it."""
    for node in list(graph):
        if node.op_type == "TensorScatter" and str(node.inputs[0].name).endswith(".key"):  # type: ignore[union-attr]
            turned = ir.node("Neg", [node.inputs[0]])
            graph.insert_before(node, turned)
            node.replace_input_with(0, turned.outputs[0])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_logits_a_wrong_constant_in_the_graph(copied: Build, precision: str) -> None:
    engine = copied(precision)
    spoil.edit_graph(engine, wrong_scale)
    subject = subject_of(engine)
    assert file_checks.files(subject).passed and file_checks.weights(subject).passed
    assert not (parity_checks.logits(subject).passed and parity_checks.signals(subject).passed)


def test_prefill_a_cache_that_is_not_read_as_it_was_written(copied: Build) -> None:
    engine = copied()
    spoil.edit_graph(engine, turned_prefix)
    subject = subject_of(engine)
    assert parity_checks.logits(subject).passed
    fails(decoding_checks.chunked_prefill(subject))


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_exact_kernels_see_what_rounding_hides(copied: Build, precision: str) -> None:
    engine = copied(precision)
    spoil.edit_graph(engine, wrong_scale)
    subject = subject_of(engine)
    assert parity_checks.logits(subject).passed
    fails(parity_checks.exact_kernels(subject))


def test_logits_an_engine_that_errs_more_than_a_near_tie(engine: Build) -> None:
    """Outputs of another model: the gate fails and the disagreements are named."""
    subject = subject_of(engine())
    subject.outputs = [
        {name: np.roll(rows, 1, axis=-1) for name, rows in output.items()}
        for output in subject.outputs
    ]
    result = parity_checks.logits(subject)
    fails(result, "prompt", "position", "torch has 'w", "above")
    assert result.numbers["top-1"] < 0.5


def test_near_ties_are_listed_and_accepted(engine: Build) -> None:
    """The reference holds two tokens closer than the engine errs: named, not failed."""
    subject = subject_of(engine())
    logits = stacked = subject.references[0].stored["logits"]
    best, second = np.argsort(-logits[4])[:2]
    tie = stacked.copy()
    tie[4, second] = np.nextafter(tie[4, best], np.float32(-np.inf))
    subject.references[0].stored["logits"] = tie
    for output, reference in zip(subject.outputs, subject.references, strict=True):
        output["logits"][:] = reference.stored["logits"]  # type: ignore[index]
    subject.outputs[0]["logits"][4, second] = np.nextafter(tie[4, best], np.float32(np.inf))
    result = parity_checks.logits(subject)
    assert result.passed
    assert result.numbers["near-ties"] == 1
    assert len(result.notes) == 1
    for part in ("near-tie: prompt 1, position 4", f"({best})", f"({second})"):
        assert part in result.notes[0]


def test_base_a_graph_that_cannot_be_loaded_is_an_engine_error(copied: Build) -> None:
    engine = copied()
    spoil.edit_graph(engine, lambda graph: graph.inputs.pop())
    with pytest.raises(EngineError, match=r"ONNX Runtime cannot load .*model\.onnx"):
        parity_checks.base(subject_of_tokens(engine))


def subject_of_tokens(engine: Path) -> Subject:
    """A subject whose prompts need no engine to be encoded."""
    return subject_of(engine, prompts=((3, 4, 5),))


def test_signals_a_head_of_the_wrong_sign(copied: Build) -> None:
    engine = copied()
    spoil.edit_weight(engine, "signals.next.weight_t", negate)
    subject = subject_of(engine)
    assert parity_checks.logits(subject).passed
    fails(parity_checks.signals(subject))


def test_precision_a_model_that_lost_its_knowledge(engine: Build) -> None:
    subject = subject_of(engine("int4"))
    subject.outputs = [
        {name: rows * np.float32(0.2) for name, rows in output.items()}
        for output in subject.outputs
    ]
    fails(parity_checks.precision(subject))


def broken(engine: Path, kind: type[CountingEngine], **options: Any) -> Subject:
    """A subject whose engine misbehaves; the spreads are those of the sound one."""
    subject = subject_of(engine, **options)
    _ = subject.spreads
    subject.__dict__["engine"] = kind(subject.engine)
    return subject


@pytest.mark.parametrize("kind", [spoil.SequentialTree, spoil.FirstRowKept])
def test_tree_step_fails(engine: Build, kind: type[CountingEngine]) -> None:
    fails(decoding_checks.tree_step(broken(engine(), kind)))


@pytest.mark.parametrize("kind", [spoil.PositionsFromZero, spoil.LastRowLost])
def test_prefill_fails(engine: Build, kind: type[CountingEngine]) -> None:
    fails(decoding_checks.chunked_prefill(broken(engine(), kind)))


def test_weight_zero_fails_if_candidates_change_the_logits(engine: Build) -> None:
    subject = broken(engine(), spoil.WidthChangesLogits)
    fails(decoding_checks.weight_zero(subject), "prompt 1, token", "all candidates scored")


def test_weight_zero_fails_if_decoding_is_not_plain(
    engine: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ArgsGreedy, "choose", lambda self, scores, _: len(scores) - 1)
    result = decoding_checks.weight_zero(subject_of(engine()))
    fails(
        result,
        "prompt 1: weight 0 gives other tokens than plain decoding",
        "prompt 1, token 1: margin",
    )


def test_forward_passes_are_counted_at_the_engine(
    engine: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop that feeds the winner again takes two passes per token, whatever it reports."""

    def twice(engine: CountingEngine, request: Any) -> Any:
        def again(_: object) -> None:
            engine.forwards += 1

        return generate(engine, request, on_event=again)

    monkeypatch.setattr(decoding_checks, "generate", twice)
    result = decoding_checks.forward_passes(subject_of(engine()))
    fails(result)
    assert result.numbers["per token"] == 2


def test_without_a_reward_the_decoding_checks_do_not_apply(engine: Build) -> None:
    subject = subject_of(engine())
    draft = dataclasses.replace(subject.manifest.signals[0], kind="medusa")
    subject.manifest = dataclasses.replace(subject.manifest, signals=(draft,))
    for check in (
        decoding_checks.weight_zero,
        decoding_checks.forward_passes,
        signal_checks.values,
    ):
        result = check(subject)
        assert result.passed is None
        assert "no signal that scores next tokens" in result.notes[0]


def test_drafts_fail_if_a_row_depends_on_its_neighbours(engine: Build) -> None:
    subject = broken(engine(), spoil.WidthChangesLogits)
    fails(signal_checks.drafts(subject), "plain: lookup changes", "plain: drafts changes")


def test_experts_fail_if_weight_zero_is_not_plain(
    engine: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Experts, "choose", lambda self, scores, _: len(scores) - 1)
    fails(signal_checks.experts(subject_of(engine())), "prompt 1, greedy", "prompt 1, sampled")


def test_values_fail_if_those_of_candidates_are_not_those_of_the_text(engine: Build) -> None:
    result = signal_checks.values(broken(engine(), spoil.ShortStepsScoreTwice))
    fails(result)
    # All that score, and no drafts.
    assert list(result.numbers) == ["reward max", "next max", "tone max"]


def test_every_check_has_a_test_in_which_it_fails() -> None:
    source = Path(__file__).read_text()
    functions: list[Callable[[Subject], CheckResult]] = [check.run for check in CHECKS]
    for function in functions:
        module = function.__module__.rpartition(".")[2]
        assert f"fails({module}.{function.__name__}(" in source or (
            f"result = {module}.{function.__name__}(" in source and "fails(result" in source
        ), function.__name__


@pytest.mark.parametrize(("measured", "passed"), [(0.5, True), (1.0, True), (1.1, False)])
def test_a_gate(measured: float, passed: bool) -> None:
    assert decide("n", "w", measured, Limit(1.0, "r")).passed is passed


def test_nan_never_passes() -> None:
    result = decide("n", "w", float("nan"), Limit(1.0, "r"), {"x": float("inf")})
    assert result.passed is False
    assert result.to_json()["measured"] is None
    assert result.to_json()["numbers"] == {"x": None}
