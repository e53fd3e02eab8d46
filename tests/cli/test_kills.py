"""L5: whatever fails or is killed while a command writes, a name holds the old or the new.

Every rename, removal and opening of every writing command goes wrong once, by an error and by the
end of the process; then no file grows beyond a few sizes, which stops writes half-way.
"""

from __future__ import annotations

import hashlib
import importlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from otter_export import output_directory
from otter_export.converters.external_data import MODEL_FILE
from otter_export.manifest import EngineManifest
from tests import faults, tiny
from tests.faults import KILLED, Fault, otter, tree
from tests.modeling.test_train_cli import write_lines

Command = Callable[[], object]
View = Callable[[Path], dict[str, bytes] | None]
#: Bytes at which writes stop: in the first block, and within weights.
SIZES = (0, 1000, 9000)
#: What the commands import when they run: here, so that not every child process does.
for _module in (
    "matplotlib.backends.backend_agg",
    "otter_export.cli.add_signal",
    "otter_export.cli.build",
    "otter_export.cli.reshape",
    "otter_export.cli.train",
    "otter_export.cli.triton",
    "otter_export.converters.onnx",
    "transformers.models.llama.modeling_llama",
):
    importlib.import_module(_module)


def every_fault(calls: int) -> Iterator[Fault]:
    """A fault at each of ``calls`` calls, and at each size; of many copies, at some of them."""
    step = 1 + calls // 60
    chosen = [call for call in range(1, calls + 1) if call % step == 0 or call > calls - 20]
    for kills in (False, True):
        yield from (Fault(kills, call) for call in chosen)
        yield from (Fault(kills, size=size) for size in SIZES)


def check_output(root: Path, command: Command, name: str, view: View = tree) -> None:
    """Try every fault on a command that replaces, or makes, the directory ``root / name``."""
    kept = root.with_name("kept")
    shutil.copytree(root, kept)
    old = view(root / name)

    def fresh() -> None:
        shutil.rmtree(root)
        shutil.copytree(kept, root)

    status, calls = faults.run(root, command)
    assert status == 0
    new = view(root / name)
    assert new and new != old and calls > 5
    listing = sorted(p.name for p in root.iterdir())
    for fault in every_fault(calls):
        fresh()
        status, _ = faults.run(root, command, fault)
        found = view(root / name)
        assert status in ((0, KILLED) if fault.kills else (0, 2)), fault
        assert found in (old, new), fault
        assert status == KILLED or (found == new) == (status == 0), fault
        if fault.kills and found == old:
            assert faults.run(root, command)[0] == 0, fault
            assert view(root / name) == new
            assert sorted(p.name for p in root.iterdir()) == listing, "leftovers are removed"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


@pytest.mark.slow
def test_insert(root: Path, tiny_llama: Path) -> None:
    command = otter("insert", tiny_llama, root / "ck", "--hidden-size", "16")
    check_output(root, command, "ck")


@pytest.mark.slow
@pytest.mark.parametrize("exchange", [True, False])
def test_insert_over_a_checkpoint(
    root: Path, tiny_llama: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write_checkpoint(root / "ck", base=tiny_llama)
    command = otter("insert", tiny_llama, root / "ck", "--hidden-size", "32", "--force")
    if exchange:
        check_output(root, command, "ck")
        return
    # Two renames instead of one call: the next start gives the old directory its name back.
    monkeypatch.setattr(output_directory, "_exchange", lambda one, other: False)
    old = tree(root / "ck")
    kept = root.with_name("kept")
    shutil.copytree(root, kept)
    calls = faults.run(root, command)[1]
    new, between = tree(root / "ck"), 0
    for call in range(1, calls + 1):
        shutil.rmtree(root)
        shutil.copytree(kept, root)
        faults.run(root, command, Fault(True, call))
        between += tree(root / "ck") is None
        refused = otter("insert", tiny_llama, root / "ck", "--hidden-size", "32")
        assert faults.run(root, refused)[0] == 2, "the name is taken"
        assert tree(root / "ck") in (old, new)
        assert faults.run(root, command)[0] == 0
        assert tree(root / "ck") == new
        assert [p.name for p in root.iterdir()] == ["ck"]
    assert between == 1


@pytest.mark.slow
def test_reshape(root: Path, tmp_path: Path, tiny_llama: Path) -> None:
    options = {"base": tiny_llama, "initialization": "copy", "adapter": True}
    copied = tiny.write_checkpoint(tmp_path / "ck", **options)
    reshape = otter("reshape", copied, root / "out", "--first-layer", "1", "--prompt", "w5")
    check_output(root, reshape, "out")


@pytest.mark.slow
def test_add_signal(root: Path, tmp_path: Path, tiny_llama: Path) -> None:
    trained = tiny.write_checkpoint(tmp_path / "ck", base=tiny_llama, adapter=True)
    check_output(root, otter("add-signal", trained, root / "out", "--signal", "b:value"), "out")


def whole_engine(path: Path) -> dict[str, bytes] | None:
    """An engine's files, whole, without the two that differ from build to build."""
    found = tree(path)
    if found is None:
        return None
    for file in EngineManifest.load(path).files:
        assert hashlib.sha256(found[file.path]).hexdigest() == file.sha256
    return {name: data for name, data in found.items() if name not in ("engine.json", MODEL_FILE)}


@pytest.mark.slow
def test_build(root: Path, tiny_checkpoint: Path) -> None:
    arguments = ("build", tiny_checkpoint, "--target", "onnx", "--out", root / "engine")
    assert faults.run(root, otter(*arguments, "--precision", "fp16"))[0] == 0
    check_output(root, otter(*arguments, "--force"), "engine", whole_engine)


@pytest.mark.slow
def test_triton(root: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    engine = tmp_path / "engine"
    build = otter("build", tiny_checkpoint, "--target", "onnx", "--out", engine)
    assert faults.run(root, build)[0] == 0
    assert faults.run(root, otter("triton", engine, "--out", root / "models"))[0] == 0
    command = otter("triton", engine, "--out", root / "models", "--instances", "2", "--force")
    check_output(root, command, "models")


@pytest.mark.slow
def test_cubins(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="OpenAI Triton, the kernel language, is not installed")
    from otter_export.plugins import cubins

    metadata = SimpleNamespace(
        global_scratch_size=0, profile_scratch_size=0, name="otter", shared=1024
    )
    compiled = SimpleNamespace(
        metadata=metadata, asm={"cubin": b"\x7fELF" * 500, "ptx": ".target sm_80\n"}
    )
    monkeypatch.setattr(cubins, "compile_kernel", lambda *_, **__: compiled)
    arguments = ["--out", str(root / "kernels"), "--sm", "80", "--dtype"]
    assert faults.run(root, lambda: cubins.main([*arguments, "float16"]))[0] == 0
    check_output(root, lambda: cubins.main([*arguments, "bfloat16"]), "kernels")


@pytest.mark.slow
def test_training_resumes_or_is_done(root: Path, tmp_path: Path) -> None:
    kept, data = tiny.write_checkpoint(tmp_path / "ck"), write_lines(tmp_path / "d.jsonl", 40)
    checkpoint, tensors = root / "ck", root / "ck" / "otter.safetensors"
    state = checkpoint / "training_state" / "state.json"
    options = ("--objective", "regression", "--max-steps", "2", "--eval-every", "1")
    command = otter("train", checkpoint, "--data", data, *options)

    shutil.copytree(kept, checkpoint)
    old = tensors.read_bytes()
    status, calls = faults.run(root, command)
    new = tensors.read_bytes()
    assert (status, new != old) == (0, True)
    for fault in every_fault(calls):
        shutil.rmtree(checkpoint)
        shutil.copytree(kept, checkpoint)
        status, _ = faults.run(root, command, fault)
        assert status in ((0, KILLED) if fault.kills else (0, 2)), fault
        assert tensors.read_bytes() in (old, new), fault
        if state.exists() or tensors.read_bytes() == old:
            assert faults.run(root, command)[0] == 0, fault
        assert tensors.read_bytes() == new, "not trained twice"
        assert not state.exists()
        assert (checkpoint / "training_report.json").exists()
