"""L5: ``otter-export verify`` as a user runs it: table, JSON, exit status, one-line errors."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from otter_export.checkpoint import Checkpoint
from otter_export.evaluation import file_checks
from otter_export.evaluation.verification import CHECKS
from otter_export.runtime.methods.args_greedy import ArgsGreedy
from tests import built, tiny
from tests.command_line import Cli
from tests.evaluation import spoil
from tests.evaluation.conftest import PROMPTS, Build

PROMPT_OPTIONS = tuple(part for prompt in PROMPTS for part in ("--prompt", prompt))
NAMES = [check.name for check in CHECKS]


def statuses(table: str) -> dict[str, str]:
    """Check to what the table says of it."""
    return {
        name: next(line for line in table.splitlines() if line.startswith(f"{name} "))[
            16:24
        ].strip()
        for name in NAMES
    }


def test_a_sound_engine(cli: Cli, engine: Build) -> None:
    result = cli("verify", engine(), *PROMPT_OPTIONS, "--max-tokens", 4)
    assert (result.status, result.stderr) == (0, "")
    found = statuses(result.stdout)
    assert found.pop("exact kernels") == found.pop("precision") == "not run"
    assert set(found.values()) == {"ok"}
    for part in ("engine ", "checkpoint ", "measured", "limit", "top-10 1", "per token 1"):
        assert part in result.stdout


def test_json(cli: Cli, engine: Build) -> None:
    result = cli("verify", engine("int4"), *PROMPT_OPTIONS, "--json")
    report = json.loads(result.stdout)
    assert result.status == 0
    assert report["passed"] is True and report["precision"] == "int4"
    assert [check["name"] for check in report["checks"]] == NAMES
    for check in report["checks"]:
        assert check["passed"] is True
        assert check["measured"] <= check["limit"]
        assert check["reason"] and check["what"] and check["seconds"] >= 0


def test_quick_leaves_out_the_second_graph(cli: Cli, engine: Build) -> None:
    result = cli("verify", engine("int8"), *PROMPT_OPTIONS, "--quick")
    found = statuses(result.stdout)
    assert result.status == 0
    assert [name for name in NAMES if found[name] == "not run"] == ["exact kernels", "base"]
    assert "left out by --quick" in result.stdout


def test_prompts_of_a_file(cli: Cli, engine: Build, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "w3 w4 w5 w6"}\n{"prompt": [7, 8, 9]}\n')
    result = cli("verify", engine(), "--prompts", path, "--quick", "--json")
    logits = next(c for c in json.loads(result.stdout)["checks"] if c["name"] == "logits")
    assert (result.status, logits["numbers"]["rows"]) == (0, 7)


def test_the_built_in_prompts_fit_a_short_engine(cli: Cli, tmp_path: Path) -> None:
    checkpoint = built.random_checkpoint(tmp_path / "checkpoint")
    short = built.build(checkpoint, tmp_path / "engine", max_sequence_length=12)
    result = cli("verify", short)
    assert result.status == 0, result.stdout


Spoil = Callable[[Path], None]


def flipped_data(engine: Path) -> None:
    spoil.flip_byte(engine / "model.onnx.data")


def flipped_graph(engine: Path) -> None:
    spoil.flip_byte(engine / "model.onnx", 100)


def other_tokenizer(engine: Path) -> None:
    path = engine / "tokenizer.json"
    path.write_text(path.read_text().replace('"w5"', '"w6"', 1))


def other_channel(engine: Path) -> None:
    built.randomize(engine.parent / "llama", seed=7)


def exchanged_channel(engine: Path) -> None:
    """Two tensors of equal shape change places in the checkpoint."""
    names = [f"model.layers.{i}.mlp.up_proj.otter.from_base" for i in (0, 1)]
    kept: list[np.ndarray] = []
    spoil.edit_tensor(engine.parent / "llama", names[0], lambda a: kept.append(a.copy()))

    def put(array: np.ndarray) -> None:
        array[:] = kept[0]

    spoil.edit_tensor(engine.parent / "llama", names[1], put)


def edit_base(engine: Path, name: str, index: tuple[int, ...], value: float) -> None:
    """Change one number of the base, which the hashes in engine.json do not cover."""
    path = engine.parent / "llama" / "model.safetensors"
    tensors = load_file(path)
    tensors[name][index] = value
    save_file(tensors, path, {"format": "pt"})


def nan_in_base(engine: Path) -> None:
    edit_base(engine, "model.norm.weight", (5,), np.nan)


def other_base(engine: Path) -> None:
    edit_base(engine, "model.layers.0.mlp.up_proj.weight", (3, 5), 2.0)


def perturbed_weight(engine: Path) -> None:
    def perturb(array: np.ndarray) -> None:
        array[:, :8] += 0.5

    spoil.edit_weight(engine, "model.layers.1.mlp.gate_proj.weight", perturb)


@pytest.mark.parametrize(
    ("damage", "failed", "said"),
    [
        (flipped_data, ["files"], "model.onnx.data is not what was built"),
        (flipped_graph, ["files"], "model.onnx is not what was built"),
        (other_tokenizer, ["files"], "tokenizer.json is not what was built"),
        (other_channel, ["source"], "otter.safetensors of"),
        (exchanged_channel, ["source"], "otter.safetensors of"),
        (nan_in_base, ["finite"], "model.norm.weight holds NaN"),
        (other_base, ["weights", "logits", "base"], "up_proj.weight 1 of 6144 values differ"),
        (perturbed_weight, ["weights", "logits", "base"], "gate_proj.weight"),
    ],
)
def test_damage_fails_the_right_check(
    cli: Cli, copied: Build, damage: Spoil, failed: list[str], said: str
) -> None:
    engine = copied()
    checkpoint = engine.parent / "llama"
    damage(engine)
    result = cli("verify", engine, "--checkpoint", checkpoint, *PROMPT_OPTIONS, "--max-tokens", 4)
    assert result.status == 1
    found = [name for name, status in statuses(result.stdout).items() if status == "FAILED"]
    assert [name for name in found if name != "signals"] == failed
    assert said in result.stdout
    assert f"error: {engine}: " in result.stderr  # perhaps behind a progress bar
    assert "checks failed: " + failed[0] in result.stderr
    assert result.stderr.count("\n") == 1


def test_nothing_is_measured_on_an_engine_that_is_not_the_one_built(
    cli: Cli, copied: Build
) -> None:
    engine = copied()
    flipped_graph(engine)
    result = cli("verify", engine, *PROMPT_OPTIONS, "--json")
    report: dict[str, Any] = json.loads(result.stdout)
    assert result.status == 1 and report["passed"] is False
    assert [check["passed"] for check in report["checks"]] == [False] + [None] * (len(NAMES) - 1)
    assert report["checks"][1]["notes"] == ["the check 'files' failed"]


def test_an_engine_that_fails_in_a_check_has_failed_it(cli: Cli, copied: Build) -> None:
    """A forged graph that ONNX Runtime refuses is a failed check, not a crash."""
    engine = copied()
    spoil.edit_graph(engine, lambda graph: graph.inputs.pop())
    result = cli("verify", engine, *PROMPT_OPTIONS)
    assert result.status == 1
    assert statuses(result.stdout)["tree step"] == "FAILED"
    assert "ONNX Runtime cannot load" in result.stdout


def test_another_checkpoint(cli: Cli, engine: Build, tmp_path: Path) -> None:
    other = built.random_checkpoint(tmp_path / "other", seed=5)
    result = cli("verify", engine(), "--checkpoint", other.directory, *PROMPT_OPTIONS)
    assert result.status == 1
    assert statuses(result.stdout)["source"] == "FAILED"
    assert "is not what the engine was built from" in result.stdout


def test_a_failed_check_says_why_its_limit_is_what_it_is(
    cli: Cli, engine: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding that is not plain decoding at weight 0 fails that check and no other."""
    monkeypatch.setattr(ArgsGreedy, "choose", lambda self, scores, _: len(scores) - 1)
    result = cli("verify", engine(), *PROMPT_OPTIONS)
    assert result.status == 1
    assert [n for n, s in statuses(result.stdout).items() if s == "FAILED"] == ["weight 0"]
    assert "limit: a weight of 0 changes nothing" in result.stdout


def moved_away(engine: Path) -> None:
    shutil.rmtree(engine.parent / "llama")


def renamed(engine: Path) -> None:
    text = (engine / "engine.json").read_text()
    (engine / "engine.json").write_text(text.replace('"llama"', '"../llama"'))


def truncated(engine: Path) -> None:
    path = engine / "model.onnx.data"
    path.write_bytes(path.read_bytes()[:-10])


def removed(engine: Path) -> None:
    (engine / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("damage", "arguments", "said"),
    [
        (moved_away, (), "the checkpoint 'llama' of"),
        (moved_away, (), "--checkpoint CKPT"),
        (other_channel, (), "is not the checkpoint that"),
        (renamed, (), "does not name its checkpoint"),
        (truncated, (), "the engine is damaged; build it again"),
        (removed, (), "tokenizer.json is missing"),
        (None, ("--checkpoint", "nowhere"), "nowhere is not a directory"),
        (None, ("--prompts", "nowhere.jsonl"), "nowhere.jsonl"),
        (None, ("--prompt", ""), "prompt 1 has no token"),
        (None, ("--max-tokens", "0"), "0 is not in the range"),
        (None, ("--provider", "npu"), "'npu' is not one of"),
        (None, ("--provider", "cuda"), "onnxruntime-gpu"),
    ],
)
def test_misuse_is_one_line_and_exit_status_2(
    cli: Cli, copied: Build, damage: Spoil | None, arguments: tuple[str, ...], said: str
) -> None:
    engine = copied()
    if damage is not None:
        damage(engine)
    result = cli("verify", engine, *arguments)
    assert result.status == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_not_an_engine(cli: Cli, tmp_path: Path) -> None:
    result = cli("verify", tmp_path)
    assert result.status == 2
    assert "it is not an engine" in result.stderr


def test_torch_is_asked_for_before_the_work_starts(
    cli: Cli, engine: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "torch" else find(name, *a)
    )
    monkeypatch.setattr(file_checks, "describe_file", None)
    result = cli("verify", engine())
    assert result.status == 2
    assert "pip install 'otter-export[build]'" in result.stderr


@pytest.mark.parametrize("missing", ["mobius", "onnx_ir"])
def test_without_the_builder_one_line_says_what_to_install(engine: Build, missing: str) -> None:
    program = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        f"from otter_export.cli import main; main(['verify', {str(engine())!r}])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: otter-export verify needs the package {missing!r}")
    assert "pip install 'otter-export[build]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_adapter_finds_its_base(cli: Cli, tmp_path: Path) -> None:
    """The engine names the channel; the channel names its base."""
    base = tiny.write_base(tmp_path / "base")
    tiny.write_checkpoint(tmp_path / "channel", base=base, adapter=True)
    built.randomize(tmp_path / "channel")
    directory = built.build(Checkpoint.open(tmp_path / "channel"), tmp_path / "engine")
    result = cli("verify", directory, *PROMPT_OPTIONS, "--quick")
    assert result.status == 0, result.stdout + result.stderr


def test_the_page_describes_every_check(repository: Path) -> None:
    page = (repository / "docs" / "verify.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")]
    assert [row for row in rows if row in NAMES][: len(NAMES)] == NAMES
