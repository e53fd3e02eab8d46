"""Files that are copied, as they are, beside a built model: none is imported by otter-export.

They import TensorRT-LLM, and run where that is installed.
"""

from __future__ import annotations

from pathlib import Path


def copy_emitted(directory: Path, names: tuple[str, ...]) -> list[str]:
    """Copy files of this folder beside what is built; returns their names."""
    for name in names:
        (directory / name).write_bytes((Path(__file__).parent / name).read_bytes())
    return list(names)
