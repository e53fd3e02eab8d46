"""L5: ``otter-export triton``: the files, the configuration as Triton reads it, and bad input."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from otter_export.cli import main
from otter_export.converters.triton.repository import plan_repository, requirements
from otter_export.manifest import EngineManifest
from otter_export.serving.settings import Settings
from otter_export.serving.tensors import INPUTS, OUTPUTS
from tests import dummy_engine
from tools.tritonserver.server import CONTROL_HEADER, CONTROLLED


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """An engine directory with a file that is not part of it."""
    directory = dummy_engine.write_engine(tmp_path / "engine")
    (directory / "leftover.tmp").write_bytes(b"x")
    return directory


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["triton", *map(str, arguments)])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def parsed(repository: Path, name: str = "otter") -> Any:
    """The configuration, by the message type that the server itself parses it with."""
    reason = "tritonclient has the message type of config.pbtxt; it is not installed"
    messages = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason=reason)
    text_format = pytest.importorskip("google.protobuf.text_format", reason=reason)
    text = (repository / name / "config.pbtxt").read_text()
    return text_format.Parse(text, messages.ModelConfig())


def test_files(engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "repository"
    assert command(engine, "--out", out, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["repository"] == str(out) and result["model"] == "otter"
    top = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    package = {p for p in top if p.startswith("otter/1/otter_export/")}
    assert top - package == {
        "README.md",
        "repository.json",
        "requirements.txt",
        "otter/config.pbtxt",
        "otter/probe.py",
        "otter/warmup/max_tokens",
        "otter/warmup/text_input",
        "otter/1/model.py",
        "otter/1/engine/engine.json",
        "otter/1/engine/model.onnx",
        "otter/1/engine/tokenizer.json",
    }
    EngineManifest.load(out / "otter" / "1" / "engine")
    assert (out / "otter/1/engine/model.onnx").read_bytes() == dummy_engine.MODEL_BYTES


def test_configuration(engine: Path, tmp_path: Path) -> None:
    out = tmp_path / "repository"
    options = ("--name", "film", "--instances", 2, "--max-queue", 7, "--max-tokens", 9)
    assert command(engine, "--out", out, *options, "--log-prompts") == 0
    config = parsed(out, "film")
    assert (config.name, config.backend, config.max_batch_size) == ("film", "python", 0)
    assert config.model_transaction_policy.decoupled
    assert (config.instance_group[0].count, config.version_policy.latest.num_versions) == (2, 1)
    assert config.instance_group[0].kind == config.instance_group[0].Kind.KIND_CPU
    for tensors, fields in ((config.input, INPUTS), (config.output, OUTPUTS)):
        types = {
            value.name: value.number
            for value in tensors[0].DESCRIPTOR.fields_by_name["data_type"].enum_type.values
        }
        shown = [(t.name, t.data_type) for t in tensors]
        assert shown == [(f.name, types[f"TYPE_{f.data_type}"]) for f in fields]
    assert all(t.optional for t in config.input)
    assert {tuple(t.dims) for t in config.input} == {(1, 1), (1, -1)}
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    settings = Settings.from_parameters(parameters)
    assert (settings.max_queue, settings.max_tokens, settings.log_prompts) == (7, 9, True)
    assert settings.default_max_tokens == 9
    assert parameters["FORCE_CPU_ONLY_INPUT_TENSORS"] == "yes"
    assert parameters["ENGINE_PRECISION"] == "fp32"


def test_warm_up_is_a_request_that_the_model_takes(engine: Path, tmp_path: Path) -> None:
    out = tmp_path / "repository"
    command(engine, "--out", out)
    (warmup,) = parsed(out).model_warmup
    # With a batch size of 0 the server ignores the sample.
    assert warmup.batch_size == 1
    files = {key: value.input_data_file for key, value in warmup.inputs.items()}
    data = {key: (out / "otter" / "warmup" / name).read_bytes() for key, name in files.items()}
    length = int.from_bytes(data["text_input"][:4], "little")
    assert data["text_input"][4:].decode() == "Hello" and length == 5
    assert int.from_bytes(data["max_tokens"], "little") == 4


def test_an_engine_for_a_gpu_has_its_instances_there(engine: Path, tmp_path: Path) -> None:
    path = engine / "engine.json"
    path.write_text(path.read_text().replace('"cpu"', '"cuda"'))
    out = tmp_path / "repository"
    assert command(engine, "--out", out) == 0
    config = parsed(out)
    assert config.instance_group[0].kind == config.instance_group[0].Kind.KIND_GPU
    assert "--gpus=all" in (out / "README.md").read_text()


def test_links_of_links_lead_to_the_files(engine: Path, tmp_path: Path) -> None:
    """As in a cache of downloads: a hard link to a relative link would dangle."""
    (tmp_path / "blobs").mkdir()
    for index, path in enumerate(sorted(engine.iterdir())):
        path.rename(tmp_path / "blobs" / str(index))
        path.symlink_to(f"../blobs/{index}")
    out = tmp_path / "repository"
    assert command(engine, "--out", out, "--link") == 0
    copy = out / "otter/1/engine/model.onnx"
    assert not copy.is_symlink() and copy.read_bytes() == dummy_engine.MODEL_BYTES
    assert copy.samefile(engine / "model.onnx")


def test_links_share_the_engines_files(engine: Path, tmp_path: Path) -> None:
    out = tmp_path / "repository"
    assert command(engine, "--out", out, "--link") == 0
    assert (out / "otter/1/engine/model.onnx").samefile(engine / "model.onnx")
    assert not (out / "otter/1/model.py").samefile(engine / "model.onnx")


def test_limits_of_the_engine_itself_are_kept(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((engine / "engine.json").read_text())
    manifest["options"] = {"max_batch_size": 4, "max_candidates": 6}
    (engine / "engine.json").write_text(json.dumps(manifest))
    out = tmp_path / "repository"
    assert command(engine, "--out", out) == 0
    settings = json.loads((out / "repository.json").read_text())["settings"]
    chosen = [settings[n] for n in ("max_batch_size", "max_candidates", "default_top_k")]
    assert chosen == [4, 6, 6]
    capsys.readouterr()
    assert command(engine, "--out", out, "--force", "--max-batch-size", 5) == 2
    assert "max_batch_size is 5; the engine was built for at most 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("builder", "provider", "wheel"),
    [
        (None, "cuda", "onnxruntime-gpu"),
        ("tensorrt", "cuda", "tensorrt"),
        ("tensorrt-rtx", "cuda", "tensorrt-rtx-cu13"),
        ("tensorrt-rtx", "cpu", "onnxruntime"),
    ],
)
def test_wheels_are_those_of_the_backend(
    engine: Path, builder: str | None, provider: str, wheel: str
) -> None:
    manifest = EngineManifest.load(engine)
    target = "trt" if builder else "onnx"
    options = {"builder": builder} if builder else {}
    plan = dataclasses.replace(
        plan_repository(engine),
        manifest=dataclasses.replace(
            manifest, target=target, execution_provider=provider, options=options
        ),
    )
    names = [line.partition("==")[0] for line in requirements(plan).splitlines()]
    assert wheel in names and "tokenizers" in names


def test_readme_and_requirements(engine: Path, tmp_path: Path) -> None:
    out = tmp_path / "repository"
    command(engine, "--out", out, "--name", "film")
    readme = (out / "README.md").read_text()
    assert "v2/models/film/generate_stream" in readme and '"$PWD":/models:ro' in readme
    assert "${" not in readme
    # Who may load models may run code; see docs/security.md.
    assert "--model-control-mode=none" in readme and "explicit" not in readme
    assert f'OWNER="{",".join(CONTROLLED)}:{CONTROL_HEADER}=$(openssl rand' in readme
    assert "-restricted-api=$OWNER" in readme and "-restricted-protocol=$OWNER" in readme
    assert re.findall(r"-p (\S+)", readme) == ["127.0.0.1:8000-8002:8000-8002"]
    for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL):
        ast.parse(block)
    for fields in re.findall(r"-d '(.*?)'", readme):
        assert set(json.loads(fields)) <= {field.name for field in INPUTS}
    lines = (out / "requirements.txt").read_text().splitlines()
    assert "numpy==1.26.4" in lines
    assert any(line.startswith("onnxruntime==") for line in lines)


def test_replacing(engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "repository"
    assert command(engine, "--out", out) == 0
    assert command(engine, "--out", out) == 2
    assert "replace it with --force" in capsys.readouterr().err
    assert command(engine, "--out", out, "--force", "--name", "film") == 0
    assert not (out / "otter").exists() and (out / "film").is_dir()
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "work.txt").write_text("mine")
    assert command(engine, "--out", stranger, "--force") == 2
    assert (stranger / "work.txt").read_text() == "mine"


BAD: list[tuple[tuple[object, ...], str]] = [
    (("--name", "a/b"), "must be 1 to 64 letters"),
    (("--name", "README.md"), "is the name of a file of the repository"),
    (("--instances", 0), "instances must be an integer of at least 1, got 0"),
    (("--max-tokens", 64), "max_tokens is 64; this engine's sequences have room for 63"),
    (("--max-candidates", 1000), "max_candidates is 1000; the vocabulary has 128"),
    (("--max-queue", -1), "max_queue must be an integer of at least 1, got -1"),
    (("--method", "nucleus"), "default_method must be one of auto, args-greedy"),
    (("--weight", "nan"), "default_reward_weight must be a finite number"),
    (("--gate", -1), "default_gate must be a finite number at least 0, got -1.0"),
    (("--top-k", 100), "default_top_k is 100, above max_candidates, which is 64"),
    (("--threads", -2), "threads must be an integer of at least 0"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_options(
    engine: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[object, ...],
    message: str,
) -> None:
    out = tmp_path / "repository"
    assert command(engine, "--out", out, *options) == 2
    captured = capsys.readouterr().err
    assert message in captured and captured.count("\n") == 1
    assert not out.exists() and not list(tmp_path.glob(".repository*"))


def test_no_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert command(tmp_path / "empty", "--out", tmp_path / "out") == 2
    assert "it is not an engine" in capsys.readouterr().err


def test_an_engine_that_this_model_cannot_drive(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = engine / "engine.json"
    path.write_text(path.read_text().replace('"onnx"', '"trtllm"'))
    assert command(engine, "--out", tmp_path / "out") == 2
    assert "is of target trtllm by trtllm, which this model cannot drive" in capsys.readouterr().err


@pytest.mark.parametrize("options", [(), ("--link",)])
def test_a_damaged_engine_is_not_deployed(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    (engine / "model.onnx").write_bytes(dummy_engine.MODEL_BYTES[::-1])
    assert command(engine, "--out", tmp_path / "out", *options) == 2
    assert "its SHA-256 differs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_inside_the_engine_is_no_place(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(engine, "--out", engine / "repository") == 2
    assert "is inside the engine" in capsys.readouterr().err
