"""L1: tensors made rows by rows, and what is computed beside their rows."""

from __future__ import annotations

import concurrent.futures
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from otter_export.errors import CheckpointError, UnsupportedError
from otter_export.graph.row_tensor import RowTensor, row_tensor, rows_of
from otter_export.graph.weights import add_row_parts
from tests.graph.text import randn

Array = np.ndarray[Any, Any]


@pytest.mark.parametrize(("rows", "columns"), [(5, 3), (1, 1), (3000, 1000), (3, 1 << 21)])
def test_the_whole_is_its_blocks(rows: int, columns: int) -> None:
    values = np.arange(rows, dtype=np.float32)[:, None].repeat(columns, 1)
    tensor = row_tensor("w", ir.DataType.FLOAT, values.shape, lambda part: values[part])
    blocks = list(tensor.blocks())
    assert [b.start for b in blocks] == [0, *(b.stop for b in blocks[:-1])]
    assert blocks[-1].stop == rows
    assert max(b.stop - b.start for b in blocks) <= max(1, (1 << 20) // columns)
    np.testing.assert_array_equal(tensor.numpy(), values)
    np.testing.assert_array_equal(rows_of(tensor, slice(1, 3)), values[1:3])


def test_rows_are_rounded_and_refused_as_wholes_are() -> None:
    values = np.array([[1.0, 2.0], [np.nan, 0.0], [7e4, 0.0]], np.float32)
    tensor = row_tensor("w", ir.DataType.FLOAT16, (3, 2), lambda part: values[part])
    assert tensor.rows(slice(0, 1)).dtype == np.float16
    with pytest.raises(CheckpointError, match="tensor w holds NaN or infinity"):
        tensor.rows(slice(1, 2))
    with pytest.raises(UnsupportedError, match="tensor w holds 70000"):
        tensor.rows(slice(2, 3))


def parts_of(values: Array) -> tuple[RowTensor, ir.TensorProtocol, ir.TensorProtocol]:
    """Values, and the sum and the largest of each row, made together."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 23})
    rows, columns = values.shape
    added = add_row_parts(
        graph,
        "w",
        [
            ("", ir.DataType.FLOAT, (rows, columns)),
            ("_sums", ir.DataType.FLOAT, (rows, 1)),
            ("_largest", ir.DataType.FLOAT, (rows,)),
        ],
        lambda part: (values[part], values[part].sum(1, keepdims=True), values[part].max(1)),
    )
    tensors = [v.const_value for v in added]
    assert isinstance(tensors[0], RowTensor)
    return tuple(tensors)  # type: ignore[return-value]


def check(values: Array, sums: ir.TensorProtocol, largest: ir.TensorProtocol) -> None:
    np.testing.assert_array_equal(sums.numpy(), values.sum(1, keepdims=True))
    np.testing.assert_array_equal(largest.numpy(), values.max(1))


def test_what_is_computed_beside_rows_can_be_taken_at_any_time() -> None:
    values = randn(3000, 1000)
    first, sums, largest = parts_of(values)
    check(values, sums, largest)  # before any row was asked for
    for block in list(first.blocks())[:2]:
        first.rows(block)
    check(values, sums, largest)  # after some
    for _ in range(2):
        np.testing.assert_array_equal(first.numpy(), values)
        check(values, sums, largest)


def test_rows_may_be_made_at_the_same_time_in_any_order() -> None:
    values = randn(4000, 1000)
    first, sums, largest = parts_of(values)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(first.rows, reversed(list(first.blocks()))))
    check(values, sums, largest)
