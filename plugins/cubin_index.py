"""``otter_linear.json``: which compiled kernels a directory holds, and how each is launched.

The directory (``plugins/`` in an engine) has one file for each architecture, type and tile::

    otter_linear.json
    sm_80/float16_16x32x128.cubin
    sm_80/float16_unaligned_16x32x64.cubin

Reading checks everything that a launch relies on: an index is data from strangers. Nothing here
needs a GPU, the compiler or more than the standard library.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from otter_export.config import read_json
from otter_export.errors import ConfigError, EngineError
from otter_export.files import open_regular
from otter_export.plugins.tiles import Tile

FILE_NAME = "otter_linear.json"
FORMAT = "otter-linear-cubins"
VERSION = 1
#: Types of x, the weights and y, by numpy's names (bfloat16 by that of ml_dtypes).
DTYPES = ("float16", "bfloat16")
#: Arguments of the kernel, in order, each with its size in bytes. The last two point to scratch
#: memory of Triton's own, which this kernel does not use: null pointers.
ARGUMENTS = (
    *((name, 8) for name in ("x", "x_channel", "weight", "from_base", "from_channel")),
    *((name, 8) for name in ("bias", "bias_channel", "y", "y_channel")),
    *((name, 4) for name in ("rows", "base_in", "channel_in", "base_out", "channel_out")),
    *((name, 4) for name in ("x_stride", "x_channel_stride", "y_stride", "y_channel_stride")),
    ("has_bias", 4),
    ("global_scratch", 8),
    ("profile_scratch", 8),
)

_PATH = re.compile(r"sm_\d{2,3}/[a-z0-9_]{1,80}\.cubin")
_ARCHITECTURE = re.compile(r"sm_(\d{2,3})([af]?)")
_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,200}")
#: No device gives a block more shared memory, and no block has more warps.
_MAX_SHARED_BYTES = 1 << 20
_MAX_WARPS = 32
_MAX_CUBIN_BYTES = 16 << 20


@dataclasses.dataclass(frozen=True)
class Cubin:
    """One compiled kernel.

    Attributes:
        file: Path below the directory, ``sm_80/float16_16x32x128.cubin``.
        architecture: What it was compiled for: ``sm_80``; ``sm_90a`` runs on 9.0 alone.
        dtype: One of `DTYPES`.
        aligned: Whether it needs all pointers, and the starts of all rows, on 16 bytes.
        tile: Tile sizes and warps.
        symbol: Name of the kernel in the file.
        shared_bytes: Dynamic shared memory of a launch.
        size: Bytes of the file.
        sha256: Of the file, hexadecimal.
    """

    file: str
    architecture: str
    dtype: str
    aligned: bool
    tile: Tile
    symbol: str
    shared_bytes: int
    size: int
    sha256: str

    @property
    def compute_capability(self) -> int:
        """80 for ``sm_80``, 90 for ``sm_90a``."""
        match = _ARCHITECTURE.fullmatch(self.architecture)
        assert match is not None  # checked when the index was read
        return int(match[1])

    def runs_on(self, compute_capability: int) -> bool:
        """Whether a device of 10 * major + minor can load it.

        Machine code runs on its own architecture and on later minor ones of the same major number;
        with the suffix ``a`` on its own alone (CUDA C programming guide, binary compatibility).
        """
        built = self.compute_capability
        if not self.architecture.removeprefix("sm_").isdigit():
            return compute_capability == built
        return compute_capability // 10 == built // 10 and compute_capability >= built


@dataclasses.dataclass(frozen=True)
class CubinIndex:
    """The kernels of one directory.

    Attributes:
        directory: Where the files are.
        compiler: Name and version of what compiled them.
        cubins: The kernels.
    """

    directory: Path
    compiler: str
    cubins: tuple[Cubin, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """Every file of the index below its directory, itself included."""
        return (FILE_NAME, *(cubin.file for cubin in self.cubins))

    @property
    def compute_capabilities(self) -> tuple[int, ...]:
        """Those that kernels were compiled for, ascending."""
        return tuple(sorted({cubin.compute_capability for cubin in self.cubins}))

    def save(self) -> None:
        """Write ``otter_linear.json``."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "compiler": self.compiler,
            "arguments": _arguments(),
            "cubins": [dataclasses.asdict(cubin) for cubin in self.cubins],
        }
        text = json.dumps(content, indent=1) + "\n"
        (self.directory / FILE_NAME).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> CubinIndex:
        """Read and check ``directory/otter_linear.json``; the kernels are read by `read`.

        Raises:
            EngineError: There is no index, or it is not one that this release can use.
        """
        path = directory / FILE_NAME
        try:
            data = read_json(path)
        except ConfigError as error:
            raise EngineError(f"the fused projection's kernels cannot be read: {error}") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise EngineError(f"{path} is not an index of fused projection kernels")
        if data.get("version") != VERSION or data.get("arguments") != _arguments():
            raise EngineError(
                f"{path}: kernels of version {data.get('version')!r} whose arguments are not this "
                f"release's (version {VERSION}); build the engine again"
            )
        try:
            cubins = tuple(_cubin(entry) for entry in data["cubins"])
            if not cubins or len({cubin.file for cubin in cubins}) != len(cubins):
                raise ValueError("cubins must be a list of different files, not empty")
            return cls(directory, str(data["compiler"]), cubins)
        except (KeyError, TypeError, ValueError) as error:
            raise EngineError(f"{path} is malformed: {error}. Build the engine again") from None

    def select(self, compute_capability: int, dtype: str) -> tuple[Cubin, ...]:
        """The kernels for a device (10 * major + minor) and a type, of the closest architecture.

        Raises:
            EngineError: There are none.
        """
        usable = [c for c in self.cubins if c.dtype == dtype and c.runs_on(compute_capability)]
        if not usable:
            built = ", ".join(_version(c) for c in self.compute_capabilities)
            types = ", ".join(sorted({cubin.dtype for cubin in self.cubins}))
            raise EngineError(
                f"no fused projection kernel in {self.directory} for {dtype} on compute capability "
                f"{_version(compute_capability)}; it has {types} for {built}. Build with "
                f"--sm {compute_capability}, or with --no-plugin"
            )
        best = max(cubin.compute_capability for cubin in usable)
        return tuple(cubin for cubin in usable if cubin.compute_capability == best)

    def read(self, cubin: Cubin) -> bytes:
        """The content of one kernel's file.

        Raises:
            EngineError: It is missing, is not the one that was indexed, or lies elsewhere.
        """
        path = self.directory / cubin.file
        try:
            if not path.resolve(strict=True).is_relative_to(self.directory.resolve()):
                raise EngineError(f"{path} leads outside the engine; build the engine again")
            with open_regular(path, error=EngineError) as file:
                content = file.read(cubin.size + 1)
        except OSError as error:
            raise EngineError(f"{path} cannot be read: {error.strerror or error}") from None
        if len(content) != cubin.size or hashlib.sha256(content).hexdigest() != cubin.sha256:
            raise EngineError(f"{path} is not the kernel that was built; build the engine again")
        return content


def _arguments() -> list[str]:
    return [f"{name}:{size}" for name, size in ARGUMENTS]


def _version(compute_capability: int) -> str:
    return f"{compute_capability // 10}.{compute_capability % 10}"


def _cubin(entry: Any) -> Cubin:
    """One entry of the index; raises KeyError, TypeError or ValueError for a malformed one."""
    if not isinstance(entry, dict):
        raise TypeError("each of cubins must be an object")
    tile_fields = {field.name for field in dataclasses.fields(Tile)}
    sizes = entry["tile"]
    if not isinstance(sizes, dict) or set(sizes) != tile_fields:
        raise ValueError(f"tile must have the fields {', '.join(sorted(tile_fields))}")
    if any(type(v) is not int or not 0 < v <= 1024 for v in sizes.values()):
        raise ValueError("tile sizes must be integers from 1 to 1024")
    if sizes["warps"] > _MAX_WARPS:
        raise ValueError(f"at most {_MAX_WARPS} warps")
    patterns = {"file": _PATH, "architecture": _ARCHITECTURE, "symbol": _SYMBOL}
    patterns["sha256"] = re.compile(r"[0-9a-f]{64}")
    patterns["dtype"] = re.compile("|".join(DTYPES))
    for name, pattern in patterns.items():
        if not isinstance(entry[name], str) or pattern.fullmatch(entry[name]) is None:
            raise ValueError(f"{name} is {entry[name]!r}")
    for name, limit in (("size", _MAX_CUBIN_BYTES), ("shared_bytes", _MAX_SHARED_BYTES)):
        if type(entry[name]) is not int or not 0 <= entry[name] <= limit:
            raise ValueError(f"{name} must be an integer from 0 to {limit}")
    if type(entry["aligned"]) is not bool:
        raise TypeError("aligned must be true or false")
    names = [field.name for field in dataclasses.fields(Cubin)]
    return Cubin(**{name: entry[name] for name in names if name != "tile"}, tile=Tile(**sizes))
