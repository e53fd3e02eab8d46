"""L2: weights beside the graph: taken as they are or made block by block, hashed, counted."""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file, save_file

from otter_export import files
from otter_export.checkpoint import Checkpoint
from otter_export.converters.external_data import DATA_FILE, save_model
from otter_export.converters.onnx import TARGET, OnnxOptions
from otter_export.converters.target import BuildRequest
from otter_export.errors import EngineError, OtterError
from otter_export.evaluation.stored_weights import StoredWeights, checkpoint_weights, mismatches
from otter_export.graph.row_tensor import RowTensor
from otter_export.manifest import EngineManifest
from otter_export.safetensors_io import PlannedTensor, from_float32, write_safetensors
from tests import built, tiny

TAKEN = "base-1.safetensors"
LINKED = OnnxOptions(link=True)
#: The type of the checkpoint's weights, and the precision that stores them as they are.
SAME = [("F32", "fp32"), ("F16", "fp16")]


def checkpoint(directory: Path, dtype: str = "F32") -> Checkpoint:
    """A checkpoint over a base whose weights are stored in ``dtype``."""
    base = tiny.write_base(directory / "ck-base")
    tensors = load_file(base / "model.safetensors")
    planned = [
        PlannedTensor(name, dtype, values.shape, functools.partial(from_float32, values, dtype))
        for name, values in tensors.items()
    ]
    write_safetensors(base / "model.safetensors", planned, {"format": "pt"})
    return built.checkpoint_over(base, directory / "ck")


def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """As from one file system to another."""

    def refused(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refused)
    monkeypatch.setattr(files.fcntl, "ioctl", refused)


def check(engine: Path, opened: Checkpoint) -> None:
    """Every weight is the checkpoint's, and every hash the file's."""
    stored = StoredWeights(engine / "model.onnx", frozenset(checkpoint_weights(opened)))
    assert list(mismatches(stored, opened)) == []
    for file in EngineManifest.load(engine).files:
        data = (engine / file.path).read_bytes()
        assert (file.size, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize(("dtype", "precision"), SAME)
def test_weights_that_need_no_cast_can_be_linked(
    tmp_path: Path, dtype: str, precision: str
) -> None:
    opened = checkpoint(tmp_path, dtype)
    engine = built.build(opened, tmp_path / "engine", precision=precision, options=LINKED)
    assert (engine / TAKEN).samefile(tmp_path / "ck" / "model.safetensors")
    channel = sum(info.nbytes for info in opened.tensors.values())
    assert (engine / DATA_FILE).stat().st_size < 2 * channel
    check(engine, opened)


@pytest.mark.parametrize(("dtype", "precision"), SAME)
@pytest.mark.parametrize("link", [False, True])
def test_where_nothing_can_be_linked_the_file_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, precision: str, link: bool
) -> None:
    opened = checkpoint(tmp_path, dtype)
    linked = built.build(opened, tmp_path / "linked", precision=precision, options=LINKED)
    no_links(monkeypatch)
    engine = built.build(
        opened, tmp_path / "engine", precision=precision, options=OnnxOptions(link=link)
    )
    assert all(path.stat().st_nlink == 1 for path in engine.iterdir())
    check(engine, opened)
    for name in (TAKEN, DATA_FILE):
        assert (engine / name).read_bytes() == (linked / name).read_bytes()


def test_the_system_is_asked_to_share_the_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where it can: the file's bytes come from the system alone."""
    opened = checkpoint(tmp_path)
    source = tmp_path / "ck" / "model.safetensors"

    def clone(new: int, request: int, old: int) -> int:
        assert request == 0x40049409  # FICLONE of linux/fs.h
        assert os.path.samestat(os.fstat(old), source.stat())
        return os.write(new, source.read_bytes())

    monkeypatch.setattr(files.fcntl, "ioctl", clone)
    engine = built.build(opened, tmp_path / "engine")
    assert (engine / TAKEN).stat().st_nlink == 1
    check(engine, opened)


def test_the_onnx_package_reads_engines_with_files_of_their_own(tmp_path: Path) -> None:
    """It takes hard links for an attack, which is why they are not the default."""
    opened = checkpoint(tmp_path)
    onnx.load(built.build(opened, tmp_path / "own") / "model.onnx")
    linked = built.build(opened, tmp_path / "linked", options=LINKED)
    with pytest.raises(onnx.checker.ValidationError, match="hard links"):
        onnx.load(linked / "model.onnx")


def test_linked_and_copied_engines_give_the_same_outputs(tmp_path: Path) -> None:
    opened = checkpoint(tmp_path)
    engines = [
        built.build(opened, tmp_path / str(link), options=OnnxOptions(link=link))
        for link in (True, False)
    ]
    ids = np.arange(3, 9)[None]
    linked, copied = (built.Graph.load(engine)(ids) for engine in engines)
    for name, values in copied.items():
        np.testing.assert_array_equal(linked[name], values)


@pytest.mark.parametrize(
    ("dtype", "precision"), [("F32", "int8"), ("F16", "fp32"), ("BF16", "fp32"), ("F32", "fp16")]
)
def test_a_file_is_not_taken_for_a_few_of_its_bytes(
    tmp_path: Path, dtype: str, precision: str
) -> None:
    """Norms of an int8 engine are stored as they are; they are no reason to keep the base."""
    opened = checkpoint(tmp_path, dtype)
    engine = built.build(opened, tmp_path / "engine", precision=precision)
    assert not (engine / TAKEN).exists()
    check(engine, opened)


def test_every_shard_is_taken_under_a_name_of_its_own(tmp_path: Path) -> None:
    base = tmp_path / "ck-base"
    opened = built.random_checkpoint(tmp_path / "ck", base={"shards": 2})
    shards = sorted(base.glob("model-*.safetensors"))
    assert len(shards) == 2
    engine = built.build(opened, tmp_path / "engine")
    for index, shard in enumerate(shards, 1):
        assert (engine / f"base-{index}.safetensors").read_bytes() == shard.read_bytes()
    check(engine, opened)


def test_linked_weights_that_change_after_the_build_are_noticed(tmp_path: Path) -> None:
    opened = checkpoint(tmp_path)
    linked = built.build(opened, tmp_path / "linked", options=LINKED)
    copied = built.build(opened, tmp_path / "copied")
    moved = Path(shutil.copytree(linked, tmp_path / "moved", copy_function=shutil.copyfile))
    for file in (moved / "engine.json", copied / "engine.json"):
        os.utime(file, ns=(0, 0))  # a copy has any times
    source = tmp_path / "ck" / "model.safetensors"
    built_at = (linked / "engine.json").stat().st_mtime_ns
    tensors = load_file(source)
    # In place, as some libraries save: not by a new file that takes the name.
    save_file({name: values + 1 for name, values in tensors.items()}, tmp_path / "other")
    with source.open("r+b") as file:
        file.write((tmp_path / "other").read_bytes())
    os.utime(source, ns=(built_at + 1, built_at + 1))
    with pytest.raises(EngineError, match=r"base-1\.safetensors is a link .*build it again"):
        EngineManifest.load(linked)
    for engine in (moved, copied):
        EngineManifest.load(engine)


def test_weights_that_get_a_new_file_leave_the_engine_alone(tmp_path: Path) -> None:
    opened = checkpoint(tmp_path)
    engine = built.build(opened, tmp_path / "engine", options=LINKED)
    before = (engine / TAKEN).read_bytes()
    with files.replacing(tmp_path / "ck" / "model.safetensors") as file:
        file.write(bytes(len(before)))
    assert (engine / TAKEN).read_bytes() == before
    EngineManifest.load(engine)


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_progress_adds_up_to_all_weights(tmp_path: Path, precision: str, link: bool) -> None:
    request = BuildRequest(precision=precision, options=OnnxOptions(link=link))
    plan = TARGET.plan(checkpoint(tmp_path), request)
    counts: list[int] = []
    (tmp_path / "engine").mkdir()
    plan.write(tmp_path / "engine", counts.append)
    assert sum(counts) == plan.total_bytes
    assert min(counts) >= 0 and len(counts) > 10


def model_of(*tensors: ir.TensorProtocol) -> ir.Model:
    values = [
        ir.Value(name=t.name, shape=t.shape, type=ir.TensorType(t.dtype), const_value=t)  # type: ignore[arg-type]
        for t in tensors
    ]
    graph = ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 23})
    return ir.Model(graph, ir_version=11)


def ramp(name: str, rows: int) -> RowTensor:
    def make(part: slice) -> np.ndarray:
        return np.arange(part.start, part.stop, dtype=np.float32)[:, None].repeat(4096, 1)

    return RowTensor(name, ir.DataType.FLOAT, (rows, 4096), make)


def peak(rows: int, directory: Path) -> int:
    """Memory that writing a weight of so many rows takes."""
    directory.mkdir()
    model = model_of(ramp("w", rows))
    tracemalloc.start()
    try:
        save_model(model, directory)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_a_weight(tmp_path: Path) -> None:
    small, large = (peak(rows, tmp_path / str(rows)) for rows in (4096, 12288))
    # 64 and 192 MiB; some blocks of 4 MiB are made ahead.
    assert large < small + (8 << 20)
    values = np.fromfile(tmp_path / "12288" / DATA_FILE, np.float32).reshape(12288, 4096)
    np.testing.assert_array_equal(values[:, 0], np.arange(12288))
    np.testing.assert_array_equal(values[:, -1], np.arange(12288))


def test_a_block_that_fails_ends_the_whole(tmp_path: Path) -> None:
    def make(part: slice) -> np.ndarray:
        if part.start > 1024:
            raise OtterError("the disk has gone")
        return np.zeros((part.stop - part.start, 4096), np.float32)

    model = model_of(RowTensor("w", ir.DataType.FLOAT, (8192, 4096), make))
    with pytest.raises(OtterError, match=r"^the disk has gone$"):
        save_model(model, tmp_path)


def test_a_model_is_the_same_afterwards(tmp_path: Path) -> None:
    tensors = [ramp("w", 3), ir.tensor(np.ones(2, np.float32), name="small")]
    model = model_of(*tensors)
    save_model(model, tmp_path)
    assert [v.const_value for v in model.graph.initializers.values()] == tensors
    read = ir.load(tmp_path / "model.onnx").graph.initializers
    np.testing.assert_array_equal(read["small"].const_value.numpy(), np.ones(2))  # type: ignore[union-attr]
    np.testing.assert_array_equal(read["w"].const_value.numpy(), tensors[0].numpy())  # type: ignore[union-attr]
