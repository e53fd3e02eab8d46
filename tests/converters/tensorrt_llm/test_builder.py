"""L0, L5: the directory of builder tensorrt-llm, its command, running it, and what is refused."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from otter_export import load_engine
from otter_export.checkpoint import Checkpoint
from otter_export.cli import main
from otter_export.converters.target import Availability
from otter_export.errors import EngineError, OtterError, UnsupportedError
from otter_export.manifest import EngineManifest
from otter_export.safetensors_io import read_header
from otter_export.signals import Signal
from tests import tiny
from tests.built import random_checkpoint
from tests.converters.tensorrt_llm.build import WIDE, built, planned

HERE = Availability("tensorrt-llm", True, "1.2.1", True, "")


def test_checkpoint_only_writes_all_but_the_engine(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path / "ck", base=WIDE)
    engine = built(checkpoint, tmp_path / "engine", 2, "fp16")
    files = {str(p.relative_to(engine)) for p in engine.rglob("*") if p.is_file()}
    assert files == {
        "engine.json",
        "build_engine.sh",
        "checkpoint/config.json",
        "checkpoint/rank0.safetensors",
        "checkpoint/rank1.safetensors",
        "otter_engine_model.py",
        "tree_inputs.py",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    manifest = EngineManifest.load(engine)
    assert manifest.target == "trt" and manifest.options["builder"] == "tensorrt-llm"
    assert {f.path for f in manifest.files} == files - {"engine.json"}
    assert manifest.options["checkpoint_only"] and manifest.options["tensor_parallel"] == 2
    assert [o.name for o in manifest.outputs] == ["logits", "reward"]
    config = json.loads((engine / "checkpoint/config.json").read_text())
    assert config["mapping"] == {"world_size": 2, "tp_size": 2, "pp_size": 1}


def test_the_command_is_exact_and_stands_in_script_and_manifest(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path / "ck")
    engine = built(checkpoint, tmp_path / "engine", 1, "fp16")
    expected = (
        "trtllm-build --checkpoint_dir checkpoint --model_cls_file otter_engine_model.py "
        "--model_cls_name OtterForCausalLM --output_dir . --workers 1 --max_batch_size 8 "
        "--max_beam_width 1 --max_input_len 128 --max_seq_len 128 --max_num_tokens 1024 "
        "--gpt_attention_plugin auto --gemm_plugin auto --remove_input_padding enable "
        "--kv_cache_type paged --context_fmha enable --speculative_decoding_mode medusa "
        "--max_draft_len 4"
    )
    assert EngineManifest.load(engine).options["command"] == expected
    assert (engine / "build_engine.sh").read_text().rstrip().endswith(f"exec {expected}")


def test_one_candidate_makes_an_engine_without_tree_inputs(tmp_path: Path) -> None:
    # For TensorRT-LLM's own executor, whose MEDUSA mode expects Medusa's heads.
    checkpoint = random_checkpoint(tmp_path / "ck")
    plan = planned(checkpoint, 1, "fp16", max_candidates=1)
    assert [i.name for i in plan.inputs] == ["input_ids", "last_token_ids"]
    (tmp_path / "engine").mkdir()
    command = plan.write(tmp_path / "engine", None).options["command"]
    assert "speculative" not in command and "draft" not in command
    config = json.loads((tmp_path / "engine/checkpoint/config.json").read_text())
    assert "max_draft_len" not in config


@pytest.mark.usefixtures("standin")
@pytest.mark.parametrize("tp", [1, 2])
def test_the_engine_is_built_where_the_package_is(tp: int, tmp_path: Path) -> None:
    # The stand-in's builder checks flags, registration, and that all weights are found and fit.
    checkpoint = random_checkpoint(tmp_path / "ck", base=WIDE)
    engine = tmp_path / "engine"
    engine.mkdir()
    plan = planned(checkpoint, tp, "fp16", HERE, checkpoint_only=False)
    plan.write(engine, None).save(engine)
    manifest = EngineManifest.load(engine)
    assert manifest.model_file == "rank0.engine"
    assert manifest.builder["tensorrt_llm"] == "1.2.1"
    for rank in range(tp):
        weights = {n.partition("/")[2] for n, *_ in plan.weights if n.startswith(f"rank{rank}/")}
        assert set(json.loads((engine / f"rank{rank}.engine").read_text())) == weights
        assert not (engine / f"checkpoint/rank{rank}.safetensors").exists()
    assert json.loads((engine / "config.json").read_text())["workers"] == 1


@pytest.mark.usefixtures("standin")
def test_the_script_runs_the_same_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = random_checkpoint(tmp_path / "ck")
    engine = built(checkpoint, tmp_path / "engine", 1, "fp16")
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "trtllm-build"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tensorrt_llm.commands.build "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    subprocess.run(["sh", engine / "build_engine.sh"], check=True, capture_output=True)
    assert (engine / "rank0.engine").is_file()


@pytest.mark.usefixtures("standin")
def test_a_failing_builder_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = random_checkpoint(tmp_path / "ck")
    engine = tmp_path / "engine"
    engine.mkdir()
    plan = planned(checkpoint, 1, "fp16", HERE, checkpoint_only=False)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # the package is gone from where it runs
    with pytest.raises(
        EngineError, match="trtllm-build exited with 1; it printed last: "
    ) as caught:
        plan.write(engine, None)
    assert "No module named" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("version", "note"),
    [(None, "the package tensorrt_llm is not installed"), ("1.3.0", "accepted is 1.0 to 1.2")],
)
def test_without_a_usable_builder_only_the_checkpoint_is_written(
    version: str | None, note: str, tmp_path: Path
) -> None:
    checkpoint = random_checkpoint(tmp_path / "ck")
    availability = Availability("tensorrt-llm", False, version, True, note)
    with pytest.raises(UnsupportedError, match=note):
        planned(checkpoint, 1, "fp16", availability, checkpoint_only=False)
    assert planned(checkpoint, 1, "fp16", availability).weights


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "precision": ({}, {"precision": "int8"}, "--precision int8 is not available .* fp16, bf16"),
    "activation": ({"hidden_act": "gelu"}, {}, "hidden_act = 'gelu' .* accepted: 'silu'"),
    "ranks": ({}, {"tp": 3}, "--tensor-parallel 3 does not divide .*; possible: 1, 2"),
    "candidates": ({}, {"max_batch_size": 0}, "--max-batch-size 0"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_cannot_be_built_is_one_clear_line(case: str, tmp_path: Path) -> None:
    base, request, message = REFUSED[case]
    checkpoint = random_checkpoint(tmp_path / "ck", base=base)
    with pytest.raises(OtterError, match=message) as caught:
        planned(checkpoint, **request)
    assert "\n" not in str(caught.value)


def test_other_families_and_signal_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"family gpt2 .* available: llama, mistral, qwen2"):
        planned(random_checkpoint(tmp_path / "gpt2", "gpt2"))
    drafts = (Signal("ahead", "medusa", "identity", None, heads=2),)
    with pytest.raises(UnsupportedError, match="'ahead' of kind 'medusa' drafts tokens"):
        planned(random_checkpoint(tmp_path / "medusa", signals=drafts))


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_checkpoint(tmp_path / "ck")
    engine = tmp_path / "engine"
    flags = ["--target", "trt", "--builder", "tensorrt-llm", "--checkpoint-only", "--out"]
    with pytest.raises(SystemExit) as caught:
        main(["build", str(tmp_path / "ck"), *flags, str(engine)])
    assert caught.value.code == 0
    command = EngineManifest.load(engine).options["command"]
    assert command.startswith("trtllm-build ") and command in capsys.readouterr().out
    header = read_header(engine / "checkpoint/rank0.safetensors")
    assert {info.dtype for info in header.values()} == {"F16"}
    with pytest.raises(UnsupportedError, match="runs in TensorRT-LLM's own runtime, not here"):
        load_engine(engine)


def test_a_big_base_is_planned_from_headers_alone(tmp_path: Path) -> None:
    # Layers of 70B sizes, stored as a sparse file: reading them would take gigabytes.
    base = tiny.write_sparse_base(
        tmp_path / "base",
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=4,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=128256,
    )
    channel = {"hidden_size": 8, "intermediate_size": 8}
    tiny.write_checkpoint(tmp_path / "ck", base=base, adapter=True, **channel)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    plan = planned(Checkpoint.open(tmp_path / "ck"), 8, "bf16")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    assert 20e9 < plan.total_bytes < 30e9  # 7 GB of layers; the embedding is on every rank
