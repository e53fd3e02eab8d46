"""L2: directories of target ``vllm``: a checkpoint again, its weights linked, and vLLM's class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from otter_export.checkpoint import Checkpoint
from otter_export.converters.target import BuildRequest
from otter_export.converters.vllm import TARGET
from otter_export.errors import UnsupportedError
from otter_export.manifest import EngineManifest
from otter_export.runtime.load import open_engine
from tests import tiny


def build(checkpoint: Path, directory: Path) -> Path:
    directory.mkdir()
    plan = TARGET.plan(Checkpoint.open(checkpoint), BuildRequest(precision="stored"))
    reported: list[int] = []
    plan.write(directory, reported.append).save(directory)
    assert sum(reported) >= plan.total_bytes > 0
    return directory


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("adapter", [False, True])
def test_the_directory_is_the_checkpoint(tmp_path: Path, adapter: bool, shards: int) -> None:
    base = tiny.write_base(tmp_path / "base", shards=shards)
    settings = '{"eos_token_id": 2}'
    (base / "generation_config.json").write_text(settings)
    source = tiny.write_checkpoint(tmp_path / "source", base=base, adapter=adapter)
    built = build(source, tmp_path / "built")
    assert (built / "generation_config.json").read_text() == settings
    old, new = Checkpoint.open(source), Checkpoint.open(built)
    assert new.config.base_model_name_or_path is None
    for before, after in ((old.tensors, new.tensors), (old.base.weights, new.base.weights)):
        assert dict(before).keys() == dict(after).keys()
        for name, info in after.items():
            assert info.file.stat().st_ino == before[name].file.stat().st_ino
    config = json.loads((built / "config.json").read_text())
    assert config["architectures"] == ["OtterLlamaForCausalLM"]
    assert {k: v for k, v in config.items() if k != "architectures"} == {
        k: v for k, v in dict(old.base.data).items() if k != "architectures"
    }
    assert EngineManifest.load(built).target == "vllm"


def test_a_base_without_a_class_in_vllm_is_one_line(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny.write_checkpoint(tmp_path / "checkpoint", "gpt2"))
    with pytest.raises(UnsupportedError, match=r"family gpt2 has no class in vLLM.*llama") as error:
        TARGET.plan(checkpoint, BuildRequest(precision="stored"))
    assert "\n" not in str(error.value)


def test_it_runs_elsewhere(tmp_path: Path) -> None:
    source = tiny.write_checkpoint(tmp_path / "source")
    built = build(source, tmp_path / "built")
    with pytest.raises(UnsupportedError, match=r"runs in vLLM \(vllm serve .*\), not here"):
        open_engine(built)
