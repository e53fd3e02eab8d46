"""L0: safetensors reading and writing against the safetensors library; hostile files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file, save_file

from otter_export.errors import CheckpointError
from otter_export.safetensors_io import (
    WEIGHT_DTYPES,
    PlannedTensor,
    TensorStore,
    all_finite,
    from_float32,
    read_header,
    to_float32,
    write_safetensors,
)

bits = st.integers(0, 2**32 - 1).map(lambda value: np.uint32(value))


def planned(name: str, dtype: str, array: np.ndarray) -> PlannedTensor:
    return PlannedTensor(name, dtype, array.shape, lambda: array)


def raw_file(path: Path, header: bytes, data: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file with any header; ``length`` overrides the announced one."""
    announced = len(header) if length is None else length
    path.write_bytes(announced.to_bytes(8, "little") + header + data)
    return path


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__"),
        st.tuples(
            st.sampled_from(sorted(WEIGHT_DTYPES)),
            hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        ),
        max_size=5,
    ),
    st.dictionaries(st.text(), st.text(), max_size=3),
)
def test_written_files_are_what_the_library_reads(
    tmp_path_factory: pytest.TempPathFactory,
    plan: dict[str, tuple[str, tuple[int, ...]]],
    metadata: dict[str, str],
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.safetensors"
    generator = np.random.default_rng(0)
    arrays = {
        name: generator.integers(0, 255, (*shape, 4 if dtype == "F32" else 2), np.uint8)
        .view(WEIGHT_DTYPES[dtype])
        .reshape(shape)
        for name, (dtype, shape) in plan.items()
    }
    seen: list[int] = []
    tensors = [planned(name, plan[name][0], array) for name, array in arrays.items()]
    size = write_safetensors(path, tensors, metadata, seen.append)
    assert size == path.stat().st_size
    assert sum(seen) == sum(array.nbytes for array in arrays.values())

    library = dict(safetensors.deserialize(path.read_bytes()))
    assert set(library) == set(arrays)
    store = TensorStore(read_header(path), path)
    for name, array in arrays.items():
        assert library[name]["dtype"] == plan[name][0]
        assert tuple(library[name]["shape"]) == array.shape
        assert bytes(library[name]["data"]) == array.tobytes()
        assert store.raw(name).tobytes() == array.tobytes()
        assert store[name].shape == array.shape
    with safetensors.safe_open(str(path), framework="np") as opened:
        assert (opened.metadata() or {}) == metadata


@given(hnp.arrays(np.uint32, 20, elements=bits))
def test_bfloat16_rounds_as_torch_does(values: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    floats = values.view(np.float32)
    ours = to_float32(from_float32(floats, "BF16"), "BF16")
    theirs = torch.from_numpy(floats).to(torch.bfloat16).to(torch.float32).numpy()
    np.testing.assert_array_equal(ours, theirs)


@given(hnp.arrays(np.uint16, 20))
def test_half_types_survive_a_round_trip(values: np.ndarray) -> None:
    for dtype in ("F16", "BF16"):
        raw = values.view(WEIGHT_DTYPES[dtype])
        wide = to_float32(raw, dtype)
        finite = np.isfinite(wide)
        again = from_float32(wide[finite], dtype)
        assert again.tobytes() == raw[finite].tobytes()


def test_reading_takes_only_what_is_asked_for(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.float32).reshape(6, 4)
    write_safetensors(
        tmp_path / "model.safetensors", [planned("w", "BF16", from_float32(values, "BF16"))]
    )
    store = TensorStore.open(tmp_path, "model")
    assert isinstance(store.raw("w"), np.memmap)
    np.testing.assert_array_equal(store.float32("w", np.s_[2:4]), values[2:4])
    np.testing.assert_array_equal(store.float32("w", np.s_[:, [0, 3]]), values[:, [0, 3]])


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> np.ndarray:
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError):
        write_safetensors(tmp_path / "x.safetensors", [PlannedTensor("w", "F32", (2,), fail)])
    wrong = PlannedTensor("w", "F32", (2,), lambda: np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="planned"):
        write_safetensors(tmp_path / "x.safetensors", [wrong])
    assert list(tmp_path.iterdir()) == []


def entry(begin: int, end: int, shape: list[Any], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HOSTILE_HEADERS: dict[str, tuple[bytes, int | None]] = {
    "not JSON": (b"{not json}", None),
    "not an object": (b"[1, 2]", None),
    "not UTF-8": (b'{"\xff": 1}', None),
    "length beyond the file": (b"{}", 1 << 20),
    "length of 2^63": (b"{}", 1 << 63),
    "length of 2^64 - 1": (b"{}", (1 << 64) - 1),
    "data missing": (json.dumps({"a": entry(0, 64, [16])}).encode(), None),
    "offsets reversed": (json.dumps({"a": entry(8, 0, [2])}).encode(), None),
    "offsets negative": (json.dumps({"a": entry(-8, 0, [2])}).encode(), None),
    "shape negative": (json.dumps({"a": entry(0, 8, [-2])}).encode(), None),
    "shape and offsets disagree": (json.dumps({"a": entry(0, 8, [3])}).encode(), None),
    "shape overflows": (json.dumps({"a": entry(0, 8, [1 << 62, 1 << 62])}).encode(), None),
    "overlap": (json.dumps({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}).encode(), None),
    "hole": (json.dumps({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}).encode(), None),
    "dtype unknown": (json.dumps({"a": entry(0, 8, [2], "PICKLE")}).encode(), None),
    "offsets missing": (b'{"a": {"dtype": "F32", "shape": [2]}}', None),
    "deeply nested": (b'{"a":' * 5000, None),
}


@pytest.mark.parametrize("case", HOSTILE_HEADERS)
def test_hostile_headers_are_one_error(case: str, tmp_path: Path) -> None:
    header, length = HOSTILE_HEADERS[case]
    path = raw_file(tmp_path / "model.safetensors", header, b"\0" * 12, length)
    with pytest.raises(CheckpointError, match="is not a readable safetensors file"):
        TensorStore.open(tmp_path, "model")
    assert path.is_file()


def test_duplicate_names_are_refused_or_harmless(tmp_path: Path) -> None:
    one, two = json.dumps(entry(0, 4, [1])), json.dumps(entry(4, 8, [1]))
    header = f'{{"a": {one}, "a": {two}}}'.encode()
    with pytest.raises(CheckpointError):
        read_header(raw_file(tmp_path / "a.safetensors", header, b"\0" * 8))


@given(st.binary(max_size=64))
def test_any_bytes_are_tensors_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(content)
    try:
        infos = read_header(path)
    except CheckpointError:
        return
    assert all(0 <= info.begin <= info.end <= len(content) for info in infos.values())


@given(st.data())
def test_a_truncated_file_is_an_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.safetensors"
    save_file({"w": np.zeros((4, 4), np.float32)}, path)
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(CheckpointError):
        read_header(path)


def write_index(directory: Path, weight_map: object) -> None:
    text = json.dumps({"weight_map": weight_map})
    (directory / "model.safetensors.index.json").write_text(text)


@pytest.mark.parametrize(
    "shard",
    [
        "../secret.safetensors",
        "/etc/passwd",
        "..\\secret.safetensors",
        "a/../../secret.safetensors",
        "sub/model.safetensors",
        "..",
        "",
    ],
)
def test_an_index_cannot_leave_its_directory(shard: str, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    save_file({"w": np.zeros(2, np.float32)}, tmp_path / "secret.safetensors")
    write_index(inside, {"w": shard})
    with pytest.raises(CheckpointError, match="shards must lie beside the index"):
        TensorStore.open(inside, "model")


@pytest.mark.parametrize("weight_map", [None, [], {}, "x"])
def test_an_index_needs_a_weight_map(weight_map: object, tmp_path: Path) -> None:
    write_index(tmp_path, weight_map)
    with pytest.raises(CheckpointError, match="no weight_map"):
        TensorStore.open(tmp_path, "model")


def test_an_index_and_its_shards_must_agree(tmp_path: Path) -> None:
    save_file({"w": np.zeros(2, np.float32)}, tmp_path / "one.safetensors")
    write_index(tmp_path, {"w": "one.safetensors", "v": "two.safetensors"})
    with pytest.raises(CheckpointError, match=r"missing files: two\.safetensors"):
        TensorStore.open(tmp_path, "model")
    write_index(tmp_path, {"w": "one.safetensors", "v": "one.safetensors"})
    with pytest.raises(CheckpointError, match="tensors that no shard holds: v"):
        TensorStore.open(tmp_path, "model")
    save_file({"v": np.zeros(2, np.float32)}, tmp_path / "two.safetensors")
    write_index(tmp_path, {"w": "two.safetensors", "v": "one.safetensors"})
    with pytest.raises(CheckpointError, match=r"holds w, which .* says is in two\.safetensors"):
        TensorStore.open(tmp_path, "model")


def test_buffers_that_the_index_does_not_name_are_read(tmp_path: Path) -> None:
    """Older saves left rotary frequencies in the shards."""
    save_file({"w": np.zeros(2, np.float32), "inv_freq": np.ones(2)}, tmp_path / "one.safetensors")
    write_index(tmp_path, {"w": "one.safetensors"})
    assert sorted(TensorStore.open(tmp_path, "model")) == ["inv_freq", "w"]
    save_file({"inv_freq": np.ones(2), "v": np.ones(2)}, tmp_path / "two.safetensors")
    write_index(tmp_path, {"w": "one.safetensors", "v": "two.safetensors"})
    assert TensorStore.open(tmp_path, "model")["inv_freq"].file.name == "one.safetensors"


def test_a_single_file_comes_before_an_index(tmp_path: Path) -> None:
    """As in transformers; the index is what an older save left, its shards may be gone."""
    save_file({"w": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    write_index(tmp_path, {"v": "gone.safetensors"})
    store = TensorStore.open(tmp_path, "model")
    assert list(store) == ["w"] and store.source == tmp_path / "model.safetensors"


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (tmp_path / "model.safetensors").write_text(pointer)
    with pytest.raises(CheckpointError, match=r"Git LFS pointer; fetch .* git lfs pull"):
        TensorStore.open(tmp_path, "model")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "weights.pkl"])
def test_pickles_are_named_and_never_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(CheckpointError, match=f"pickles.*{name}.*save them as safetensors"):
        TensorStore.open(tmp_path, "model")


def test_nothing_to_open(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has neither model\.safetensors nor"):
        TensorStore.open(tmp_path, "model")


def test_integer_tensors_are_listed_and_not_read(tmp_path: Path) -> None:
    save_file({"w": np.zeros(2, np.int64)}, tmp_path / "model.safetensors")
    store = TensorStore.open(tmp_path, "model")
    assert store["w"].dtype == "I64"
    with pytest.raises(CheckpointError, match="dtype I64; accepted: F32, F16, BF16"):
        store.raw("w")
    assert list(load_file(tmp_path / "model.safetensors")) == ["w"]


@given(dtype=st.sampled_from(["F32", "F16", "BF16"]), words=st.lists(bits, max_size=6))
def test_finite_numbers_are_told_by_their_bits(dtype: str, words: list[np.uint32]) -> None:
    raw = np.array(words, np.uint32).astype(np.uint32 if dtype == "F32" else np.uint16)
    stored = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}[dtype]
    values = to_float32(raw.view(stored), dtype)
    assert all_finite(raw.view(np.uint8), dtype) == bool(np.isfinite(values).all())


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 0.0, -1e-40, 6e4])
def test_infinity_and_nan_are_told_from_other_numbers(dtype: str, value: float) -> None:
    raw = from_float32(np.array([1.0, value], np.float32), dtype)
    assert all_finite(raw.view(np.uint8), dtype) == np.isfinite(value)
