"""The index of compiled kernels as a table for the C++ plugin, which embeds them."""

from __future__ import annotations

from pathlib import Path

from otter_export.plugins.cubin_index import Cubin, CubinIndex

FILE_NAME = "otter_linear_table.inc"
_TYPES = {"float16": "kFloat16", "bfloat16": "kBFloat16"}


def write_table(index: CubinIndex, directory: Path) -> None:
    """Write ``directory/otter_linear_table.inc``: one macro call for each kernel."""
    lines = [
        "// Written by otter_export.plugins.cubins; read by plugins/cpp/otter_linear_launch.cpp."
    ]
    lines += [_line(number, cubin) for number, cubin in enumerate(index.cubins)]
    (directory / FILE_NAME).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _line(number: int, cubin: Cubin) -> str:
    is_specific = not cubin.architecture.removeprefix("sm_").isdigit()
    values = (
        number,
        cubin.compute_capability,
        str(is_specific).lower(),
        _TYPES[cubin.dtype],
        str(cubin.aligned).lower(),
        *(cubin.tile.rows, cubin.tile.outs, cubin.tile.warps),
        cubin.shared_bytes,
        f'"{cubin.symbol}"',
        f'"{cubin.file}"',
    )
    return f"OTTER_CUBIN({', '.join(map(str, values))})"
