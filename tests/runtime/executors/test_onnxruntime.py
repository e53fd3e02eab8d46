"""L4: the ONNX Runtime backend on a tiny model with the engine's I/O, against numpy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otter_export import ArgsGreedy, ArgsStochastic, Plain, Request, generate, load_engine
from otter_export.cuda import CudaDevice
from otter_export.errors import EngineError, MissingDependencyError, OtterError
from otter_export.manifest import EngineManifest
from otter_export.runtime.engine import Engine
from otter_export.runtime.executors import onnxruntime as backend
from otter_export.runtime.executors.onnxruntime import OnnxRuntimeExecutor
from otter_export.runtime.prefill import prefill
from otter_export.runtime.step_engine import StepEngine
from tests.devices import has_gpu
from tests.runtime.fake_engine import ByteTokenizer
from tests.runtime.memory.fake_cuda import FakeCuda
from tests.runtime.oracle import full_forward, guided_greedy
from tests.runtime.tiny_model import VOCAB, TinyModel, edit_manifest, make_model

#: float32 against float64: the largest difference seen over 200 sequences is 1.5e-6. A wrong mask
#: or position moves logits by more than 0.1.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def model() -> TinyModel:
    return make_model()


@pytest.fixture(scope="module")
def directory(model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "engine"
    model.save(path)
    return path


def load(directory: Path) -> Engine:
    engine = load_engine(directory, threads=1)
    # The directory has no tokenizer.json; the loop needs one for texts.
    engine.__dict__["tokenizer"] = ByteTokenizer()
    return engine


@pytest.fixture(scope="module")
def engine(directory: Path) -> Engine:
    return load(directory)


@settings(max_examples=20, deadline=None)
@given(ids=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=60), chunk=st.integers(1, 40))
def test_chunked_prefill_agrees_with_numpy(
    model: TinyModel, engine: Engine, ids: list[int], chunk: int
) -> None:
    _, step = prefill(engine, [ids], chunk)
    logits, signals = model.reference(ids)
    np.testing.assert_allclose(step.logits[0, -1], logits[-1], atol=TOLERANCE)
    for name, values in signals.items():
        np.testing.assert_allclose(step.signals[name][0, -1], values[-1], atol=TOLERANCE)


def test_a_batch_with_padding_agrees_with_numpy(model: TinyModel, engine: Engine) -> None:
    prompts = [[3] * 7, [5, 6], list(range(1, 30)), [9]]
    cache, step = prefill(engine, prompts, 8)
    assert cache.lengths.tolist() == [7, 2, 29, 1]
    for b, prompt in enumerate(prompts):
        logits, signals = model.reference(prompt)
        np.testing.assert_allclose(step.logits[b, -1], logits[-1], atol=TOLERANCE)
        np.testing.assert_allclose(step.signals["reward"][b, -1], signals["reward"][-1], atol=1e-5)


def test_a_tree_of_candidates_equals_a_pass_for_each(model: TinyModel, engine: Engine) -> None:
    prompt, candidates = [4, 8, 15, 16, 23], [1, 2, 30, 31]
    cache, _ = prefill(engine, [prompt])
    step = engine.forward(
        cache,
        np.array([candidates], np.int64),
        np.full((1, 4), 5, np.int64),
        np.eye(4, dtype=np.bool_)[None],
        4,
    )
    for row, token in enumerate(candidates):
        logits, signals = model.reference([*prompt, token])
        np.testing.assert_allclose(step.logits[0, row], logits[-1], atol=TOLERANCE)
        np.testing.assert_allclose(step.signals["reward"][0, row], signals["reward"][-1], atol=1e-5)


def test_what_a_step_gave_stays_while_somebody_holds_it(engine: Engine) -> None:
    cache, _ = prefill(engine, [[4, 8, 15]])
    tree, position = np.ones((1, 1, 1), np.bool_), np.array([[3]])

    def step(token: int) -> tuple[np.ndarray, np.ndarray]:
        made = engine.forward(cache, np.array([[token]]), position, tree, 1)
        return made.logits, made.signals["reward"][0]  # a view holds it too

    held = step(1)
    before = [array.copy() for array in held]
    others = [step(token) for token in (2, 3)]
    assert all(np.array_equal(a, b) for a, b in zip(held, before, strict=True))
    assert not np.array_equal(others[0][0], others[1][0])
    # And where nobody does, the memory is taken again.
    address = step(5)[0].ctypes.data
    assert step(6)[0].ctypes.data == address


@pytest.mark.parametrize("weight", [-3.0, 2.0])
def test_guided_decoding_equals_the_oracle(directory: Path, weight: float) -> None:
    # 70 tokens: the cache grows twice on the way.
    tokens, rewards = guided_greedy(load(directory), [7, 3], 6, weight, 70)
    engine = load(directory)
    request = Request([7, 3], ArgsGreedy(top_k=6, weight=weight), max_tokens=70)
    result = generate(engine, request)[0]
    assert list(result.token_ids) == tokens
    np.testing.assert_allclose(result.rewards, rewards, atol=TOLERANCE)


def test_requests_of_every_kind_share_a_batch(engine: Engine) -> None:
    methods = [
        ArgsGreedy(top_k=5, weight=3.0),
        ArgsGreedy(top_k=9, weight=-3.0, signal="future"),
        ArgsStochastic(top_k=6, weight=2.0, signal="reward"),
        Plain(),
        Plain(temperature=1.0, signal="future"),
    ]
    requests = [
        Request([5 + i] * (1 + 9 * i), method, max_tokens=4 + 8 * (i % 3), seed=i)
        for i, method in enumerate(methods)
    ]
    together = generate(engine, requests, batch_size=3)
    for request, result in zip(requests, together, strict=True):
        alone = generate(engine, request)[0]
        assert result.token_ids == alone.token_ids
        np.testing.assert_allclose(result.rewards, alone.rewards, atol=TOLERANCE)
        assert result.finish_reason == alone.finish_reason


def test_a_sequence_may_fill_the_engine_to_its_limit(model: TinyModel, engine: Engine) -> None:
    result = generate(engine, Request([3] * 70, Plain(temperature=5.0), max_tokens=99, seed=2))[0]
    ids = [*result.prompt_ids, *result.token_ids]
    assert result.finish_reason == "length"
    assert len(ids) == 80
    np.testing.assert_allclose(result.rewards[-1], model.reference(ids)[1]["reward"][-1], atol=1e-5)


def test_half_precision_caches_are_kept_in_half(tmp_path: Path) -> None:
    model = make_model(dtype="float16")
    model.save(tmp_path / "engine")
    engine = load(tmp_path / "engine")
    cache, step = prefill(engine, [[1, 2, 3, 4, 5]])
    assert cache.blocks[0].dtype == "float16"  # type: ignore[attr-defined]
    # Keys and values of order 1 are rounded to 11 bits.
    expected = model.reference([1, 2, 3, 4, 5])[0][-1]
    np.testing.assert_allclose(step.logits[0, -1], expected, atol=1e-2)
    assert not np.allclose(step.logits[0, -1], expected, atol=1e-7)


def test_repeated_forwards_do_not_disturb_a_step(engine: Engine) -> None:
    """The memory of new rows is reused; a step that can still be committed must keep its own."""
    ids = [3, 1, 4, 1, 5]
    expected = full_forward(engine, ids).logits
    cache, _ = prefill(engine, [ids[:3]])

    def feed(token: int):  # type: ignore[no-untyped-def]
        one = np.ones((1, 1, 1), np.bool_)
        position = cache.lengths[:, None].copy()
        return engine.forward(cache, np.array([[token]], np.int64), position, one, 1)

    first = feed(1)
    feed(9)
    engine.commit(cache, first, [[0]])
    feed(8)
    assert np.allclose(feed(5).logits, expected, atol=TOLERANCE)


def test_a_step_is_committed_once_and_to_its_own_cache(engine: Engine) -> None:
    step = full_forward(engine, [1, 2])
    cache = step.rows.cache
    with pytest.raises(EngineError, match="cache that it was run on"):
        engine.commit(engine.new_cache(1), step, [[0]])
    engine.commit(cache, step, [[0, 1]])
    with pytest.raises(EngineError, match="committed once"):
        engine.commit(cache, step, [[0]])


def _forward_arguments() -> dict[str, object]:
    return {
        "input_ids": np.ones((1, 2), np.int64),
        "position_ids": np.zeros((1, 2), np.int64),
        "tree": np.tri(2, dtype=np.bool_)[None],
        "logits_to_keep": 1,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_ids": np.ones((2, 2), np.int64)}, r"input_ids must be \[1, S\], got \[2, 2\]"),
        ({"input_ids": np.ones((1, 0), np.int64)}, r"input_ids must be \[1, S\], got \[1, 0\]"),
        ({"input_ids": np.ones((1, 2), np.int32)}, r"input_ids must be int64\[1, 2\], got int32"),
        ({"input_ids": [[1, 2]]}, "input_ids must be int64.*got list"),
        ({"input_ids": np.full((1, 2), VOCAB)}, "input_ids holds 32; accepted: 0 to 31"),
        ({"input_ids": np.full((1, 2), -1)}, "input_ids holds -1; accepted: 0 to 31"),
        ({"position_ids": np.zeros((1, 3), np.int64)}, r"position_ids must be int64\[1, 2\]"),
        ({"position_ids": np.full((1, 2), 80)}, "position_ids holds 80; accepted: 0 to 79"),
        ({"tree": np.ones((1, 2, 3), np.bool_)}, r"tree must be bool\[1, 2, 2\]"),
        ({"tree": np.ones((1, 2, 2), np.int64)}, r"tree must be bool\[1, 2, 2\], got int64"),
        ({"logits_to_keep": 0}, "logits_to_keep must be from 1 to 2, got 0"),
        ({"logits_to_keep": 3}, "logits_to_keep must be from 1 to 2, got 3"),
    ],
)
def test_wrong_forward_arguments(engine: Engine, changes: dict[str, object], message: str) -> None:
    arguments = {**_forward_arguments(), **changes}
    with pytest.raises(EngineError, match=message):
        engine.forward(engine.new_cache(1), **arguments)  # type: ignore[arg-type]


def test_wrong_commits_and_caches(engine: Engine) -> None:
    cache = engine.new_cache(1)
    step = engine.forward(cache, **_forward_arguments())  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="rows must be given for 1 sequences, got 2"):
        engine.commit(cache, step, [[0], [1]])
    with pytest.raises(EngineError, match="rows must be from 0 to 1"):
        engine.commit(cache, step, [[2]])
    with pytest.raises(EngineError, match="0 or more sequences"):
        engine.new_cache(-1)
    with pytest.raises(EngineError, match="the cache holds no sequences"):
        engine.forward(engine.new_cache(0), **_forward_arguments())  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="holds 1 sequences; there is no sequence 1"):
        engine.append(engine.new_cache(0), [(cache, 1)])
    with pytest.raises(EngineError, match="from itself"):
        engine.append(cache, [(cache, 0)])
    with pytest.raises(EngineError, match="holds 1 sequences; there is no sequence -1"):
        engine.select(cache, [-1])
    with pytest.raises(EngineError, match="selected once"):
        engine.select(cache, [0, 0])
    with pytest.raises(EngineError, match="not made by this engine"):
        engine.forward(object(), **_forward_arguments())  # type: ignore[arg-type]
    full, _ = prefill(engine, [[1] * 80])
    last = engine.forward(full, **_forward_arguments())  # type: ignore[arg-type]
    with pytest.raises(EngineError, match=r"would have 81 tokens; the engine takes 80"):
        engine.commit(full, last, [[0]])


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lengths=st.lists(st.integers(1, 79), min_size=1, max_size=4), data=st.data())
def test_appended_sequences_go_on_as_before(
    engine: Engine, lengths: list[int], data: st.DataObject
) -> None:
    prompts = [[(3 * i + b) % VOCAB for i in range(n)] for b, n in enumerate(lengths)]
    cache, _ = prefill(engine, prompts)
    order = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=4))
    joined = engine.new_cache(0)
    engine.append(joined, [(cache, b) for b in order])
    ids = np.full((len(order), 1), 7, np.int64)
    tree = np.ones((len(order), 1, 1), np.bool_)
    step = engine.forward(joined, ids, joined.lengths[:, None].copy(), tree, 1)
    for row, b in enumerate(order):
        expected = full_forward(engine, [*prompts[b], 7])
        np.testing.assert_allclose(step.logits[row], expected.logits[0], atol=TOLERANCE)


def on_fake_cuda(directory: Path, runtime: Any) -> tuple[StepEngine, FakeCuda]:
    """An engine whose caches are moved as in CUDA memory, on a stand-in in host memory."""
    cuda = FakeCuda(runtime)
    manifest = EngineManifest.load(directory)
    session = backend.open_session(directory / manifest.model_file, "cpu", 1)
    executor = OnnxRuntimeExecutor(manifest, session, "cpu", CudaDevice(cuda))
    engine = StepEngine(directory, manifest, executor)
    engine.__dict__["tokenizer"] = ByteTokenizer()
    return engine, cuda


def test_caches_in_cuda_memory_drive_the_graph_as_those_of_the_host_do(directory: Path) -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    requests = [
        Request([7, 3], ArgsGreedy(top_k=6, weight=2.0), max_tokens=40),
        Request([5] * 20, ArgsGreedy(top_k=3, weight=-2.0), max_tokens=25),
    ]
    expected = generate(load(directory), requests)
    engine, cuda = on_fake_cuda(directory, runtime)
    found = generate(engine, requests)
    assert [dataclasses.replace(r, seconds=0) for r in found] == [
        dataclasses.replace(r, seconds=0) for r in expected
    ]
    # Before each run: the library's own stream does not wait for the copies.
    assert cuda.calls.count("cudaStreamSynchronize") > 40


def test_capacity_is_small_steps_up_to_the_limit(engine: Engine) -> None:
    slots = engine._executor.slots  # type: ignore[attr-defined]
    assert [slots(n) for n in (0, 1, 32, 33, 80)] == [32, 32, 32, 64, 96]
    # An eighth more than before at least, and never more than the longest sequence needs.
    assert [slots(33, held) for held in (32, 64, 80)] == [64, 96, 96]


def test_cuda_needs_the_gpu_build(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingDependencyError, match=r"onnxruntime-gpu.*otter-export\[cuda\]"):
        load_engine(directory, provider="cuda")


def test_a_provider_that_does_not_start_is_an_error(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime warns and goes on with the CPU; what it prints of libraries is held back."""
    monkeypatch.setattr(
        backend.ort, "get_available_providers", lambda: list(backend.PROVIDERS.values())
    )
    plain = backend.ort.InferenceSession

    def on_cpu(source: Any, options: Any, providers: list[Any]) -> Any:
        assert providers == [("CUDAExecutionProvider", {"use_tf32": "0"})]
        return plain(source, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(backend.ort, "InferenceSession", on_cpu)
    monkeypatch.setattr(backend.ort, "preload_dlls", lambda: print("Failed to load libcudart"))
    with pytest.raises(EngineError, match=r"cannot start its provider 'cuda'.*\[cuda,cudnn\]"):
        load_engine(directory, provider="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(
    not has_gpu() or "CUDAExecutionProvider" not in backend.ort.get_available_providers(),
    reason="needs a CUDA device and onnxruntime-gpu",
)
def test_on_a_gpu_the_caches_stay_there(directory: Path) -> None:
    """The same tokens as on the CPU, in a batch whose sequences join, grow and leave."""
    requests = [
        Request([7, 3], ArgsGreedy(top_k=6, weight=2.0), max_tokens=40),
        Request([5] * 20, ArgsGreedy(top_k=3, weight=-2.0), max_tokens=25),
        Request([9, 1, 4], Plain(), max_tokens=60),
    ]
    engine = load_engine(directory, provider="cuda")
    engine.__dict__["tokenizer"] = ByteTokenizer()
    found, expected = (generate(e, requests, batch_size=2) for e in (engine, load(directory)))
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids == other.token_ids
        # float32 sums in another order, never tf32.
        np.testing.assert_allclose(one.rewards, other.rewards, atol=TOLERANCE)


def _without(names: str, key: str):  # type: ignore[no-untyped-def]
    def change(data: dict) -> dict:  # type: ignore[type-arg]
        return {key: [spec for spec in data[key] if spec["name"] != names]}

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cache_form": "other"}, "cache_form is 'other'; target onnx runs 'in_place' and 'read"),
        ({"execution_provider": "tpu"}, "execution_provider is 'tpu'; accepted: cpu, cuda"),
        ({"target": "onyx"}, "unknown backend for target 'onyx'"),
        (_without("logits", "outputs"), "output logits is not listed"),
        (_without("position_ids", "inputs"), "input position_ids is not listed"),
        (_without("past_key_values.0.key", "inputs"), "past_key_values.0.key is missing; a cache"),
        (
            lambda d: {"base": {**d["base"], "num_hidden_layers": 3}},
            "input past_key_values.2.key is not listed",
        ),
        (lambda d: {"base": {**d["base"], "num_hidden_layers": 1}}, "past_key_values.1.key is unk"),
        (lambda d: {"base": {**d["base"], "vocab_size": 33}}, r"logits has shape .*expected .*33"),
        (lambda d: {"base": {**d["base"], "head_dim": 16}}, r"past_key_values.0.key has shape"),
        (
            lambda d: {"signals": [{**d["signals"][0], "name": "other"}, d["signals"][1]]},
            "output other is missing",
        ),
    ],
)
def test_a_model_that_does_not_match_its_manifest(
    model: TinyModel, tmp_path: Path, change: object, message: str
) -> None:
    import json

    model.save(tmp_path / "engine")
    data = json.loads((tmp_path / "engine" / "engine.json").read_text())
    edit_manifest(tmp_path / "engine", **(change(data) if callable(change) else change))  # type: ignore[arg-type]
    with pytest.raises(OtterError, match=message):
        load_engine(tmp_path / "engine")


def test_a_damaged_model_is_one_clear_error(model: TinyModel, tmp_path: Path) -> None:
    model.save(tmp_path / "engine")
    path = tmp_path / "engine" / "model.onnx"
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(EngineError, match=r"ONNX Runtime cannot load .*model\.onnx"):
        load_engine(tmp_path / "engine")


@pytest.mark.parametrize("options", [{"provider": "gpu"}, {"threads": 0}, {"threads": 1.5}])
def test_wrong_load_options(directory: Path, options: dict[str, object]) -> None:
    name = next(iter(options))
    with pytest.raises(OtterError, match=f"{name} must be"):
        load_engine(directory, **options)  # type: ignore[arg-type]


def test_a_model_that_never_ends_is_stopped() -> None:
    """A Loop of 2**62 rounds, as a stranger's engine may have one."""
    model = onnx.parser.parse_model(
        """
        <ir_version: 10, opset_import: ["": 21]>
        endless (int64 n, bool c, float x) => (float y) {
            y = Loop <body = rounds (int64 i, bool going, float a) => (bool goes, float b) {
                goes = Identity(going)
                b = Add(a, a)
            }> (n, c, x)
        }
        """
    )
    session = backend.open_session(model.SerializeToString(), "cpu", 1)
    binding = session.io_binding()
    rounds = {"n": np.array(2**62), "c": np.array(True), "x": np.array(1, np.float32)}
    for name, value in rounds.items():
        binding.bind_cpu_input(name, value)
    binding.bind_output("y", "cpu")
    with pytest.raises(EngineError, match="did not finish its first step in 1 seconds"):
        backend.run_limited(session, binding, 1.0)
    binding.bind_cpu_input("n", np.array(3))
    backend.run_limited(session, binding, 60.0)
    assert binding.copy_outputs_to_cpu()[0] == 8
