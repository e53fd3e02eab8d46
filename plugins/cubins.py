"""Compile the fused projection ahead of time, for GPUs that need not be here.

Usage::

    python -m otter_export.plugins.cubins --out DIR --sm 80,89,90,120 [--dtype float16,bfloat16]

An existing DIR is replaced, after success, if it holds such kernels; any other is left alone. DIR
also gets the table with which the C++ plugin embeds the kernels.

OpenAI Triton brings its own assembler, so neither a GPU nor the CUDA toolkit is needed. The result
depends on the versions of Triton and of this package alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from otter_export.errors import MissingDependencyError, OtterError, UnsupportedError
from otter_export.output_directory import output_directory
from otter_export.plugins.cpp_table import write_table
from otter_export.plugins.cubin_index import ARGUMENTS, DTYPES, FILE_NAME, Cubin, CubinIndex
from otter_export.plugins.tiles import TILES, UNALIGNED_TILES, Tile

#: What the command compiles for unless told otherwise: each generation since Ampere.
COMPUTE_CAPABILITIES = (80, 86, 89, 90, 120)
#: All that exist and have what the kernel uses: bfloat16 matrix instructions and asynchronous
#: copies, which came with 8.0. Any other number would end the process within LLVM.
POSSIBLE_CAPABILITIES = (80, 86, 87, 89, 90, 100, 103, 120, 121)
#: Arguments that are multiples of 16 bytes if x, x', W, A and B are aligned.
_ALIGNED_SIZES = ("base_in", "channel_in", "x_stride", "x_channel_stride")
_TRITON_TYPES = {"float16": "fp16", "bfloat16": "bf16"}


@dataclasses.dataclass(frozen=True)
class _Variant:
    """One kernel to compile."""

    compute_capability: int
    dtype: str
    aligned: bool
    tile: Tile

    @property
    def file(self) -> str:
        """Its path below the output directory."""
        unaligned = "" if self.aligned else "unaligned_"
        return f"sm_{self.compute_capability}/{self.dtype}_{unaligned}{self.tile.name}.cubin"


def count_cubins(compute_capabilities: Sequence[int], dtypes: Sequence[str] = DTYPES) -> int:
    """How many kernels `build_cubins` compiles: the total of its ``progress``."""
    return len(_variants(compute_capabilities, dtypes))


def build_cubins(
    directory: Path,
    compute_capabilities: Sequence[int],
    progress: Callable[[int], None] | None = None,
    dtypes: Sequence[str] = DTYPES,
) -> CubinIndex:
    """Compile every tile and write the kernels and their index.

    Args:
        directory: Where to write; made if missing.
        compute_capabilities: 10 * major + minor each, for example 80 and 120.
        progress: Called with 1 after each kernel.
        dtypes: Types to compile for, of `DTYPES`.

    Returns:
        The index, already written.

    Raises:
        MissingDependencyError: Triton is not installed.
        UnsupportedError: A compute capability or type is not one that can be compiled for.
    """
    variants = _variants(compute_capabilities, dtypes)
    cubins = []
    for variant in variants:
        cubins.append(_compile_variant(variant, directory))
        if progress is not None:
            progress(1)
    index = CubinIndex(directory, f"triton {_triton().__version__}", tuple(cubins))
    index.save()
    return index


def _variants(compute_capabilities: Sequence[int], dtypes: Sequence[str]) -> list[_Variant]:
    for capability in compute_capabilities:
        if capability not in POSSIBLE_CAPABILITIES:
            raise UnsupportedError(
                f"compute capability {capability}: the fused projection can be compiled for "
                f"{_join(POSSIBLE_CAPABILITIES)}; leave it out, or build with --no-plugin"
            )
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise UnsupportedError(f"type {dtype!r}: the fused projection has {', '.join(DTYPES)}")
    return [
        _Variant(capability, dtype, aligned, tile)
        for capability in sorted(set(compute_capabilities))
        for dtype in dict.fromkeys(dtypes)
        for aligned, tiles in ((True, TILES), (False, UNALIGNED_TILES))
        for tile in tiles
    ]


def _compile_variant(variant: _Variant, directory: Path) -> Cubin:
    """Compile and write one kernel."""
    compiled = compile_kernel(
        variant.compute_capability, variant.dtype, variant.tile, aligned=variant.aligned
    )
    metadata, content = compiled.metadata, compiled.asm["cubin"]
    target = re.search(r"^\.target (sm_\w+)", compiled.asm["ptx"], re.MULTILINE)
    if target is None or metadata.global_scratch_size or metadata.profile_scratch_size:
        raise UnsupportedError(
            f"Triton {_triton().__version__} compiled the fused projection to a kernel that needs "
            "scratch memory; use Triton 3.9, or build with --no-plugin"
        )
    path = directory / variant.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return Cubin(
        file=variant.file,
        architecture=target[1],
        dtype=variant.dtype,
        aligned=variant.aligned,
        tile=variant.tile,
        symbol=metadata.name,
        shared_bytes=metadata.shared,
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def compile_kernel(compute_capability: int, dtype: str, tile: Tile, *, aligned: bool) -> Any:
    """Triton's compiled kernel: ``asm["cubin"]``, ``asm["ptx"]`` and ``metadata``.

    Args:
        compute_capability: 10 * major + minor.
        dtype: One of `DTYPES`.
        tile: Tile sizes.
        aligned: Promise that pointers and starts of rows lie on 16 bytes, so that the kernel may
            copy 16 bytes at a time.

    Raises:
        MissingDependencyError: Triton is not installed.
        UnsupportedError: Triton has no such architecture, or is asked to interpret.
    """
    triton = _triton()
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, CompilationError

    from otter_export.plugins.otter_linear import otter_linear as kernel

    if triton.knobs.runtime.interpret:
        raise UnsupportedError("TRITON_INTERPRET is set, which interprets kernels; unset it")
    signature, hints = {}, {}
    for position, (name, size) in enumerate(ARGUMENTS[:-2]):
        signature[name] = f"*{_TRITON_TYPES[dtype]}" if size == 8 else "i32"
        if aligned and size == 8:
            hints[(position,)] = [["tt.divisibility", 16]]  # bytes
        elif aligned and name in _ALIGNED_SIZES:
            hints[(position,)] = [["tt.divisibility", 8]]  # values, of 2 bytes
    constants = {"ROWS": tile.rows, "OUTS": tile.outs, "INS": tile.ins}
    signature |= dict.fromkeys(constants, "constexpr")
    # Line information would only put this machine's paths into the files.
    options = {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}
    try:
        with triton.knobs.compilation.scope():
            triton.knobs.compilation.disable_line_info = True
            return triton.compile(
                ASTSource(kernel, signature, constants, hints),
                target=GPUTarget("cuda", compute_capability, 32),
                options=options,
            )
    except (CompilationError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else repr(error)
        raise UnsupportedError(
            f"Triton {triton.__version__} cannot compile the fused projection for compute "
            f"capability {compute_capability}: {reason}"
        ) from error


def _join(values: Sequence[object]) -> str:
    return ",".join(map(str, values))


def _triton() -> Any:
    try:
        import triton
    except ImportError:
        raise MissingDependencyError("triton", "trt", "compiling the fused projection") from None
    return triton


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; prints one line for the result, or one for the error."""
    parser = argparse.ArgumentParser(description="Compile the fused projection ahead of time.")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--sm", action="append", help=f"default: {_join(COMPUTE_CAPABILITIES)}")
    parser.add_argument("--dtype", default=_join(DTYPES), help="%(default)s")
    given = parser.parse_args(arguments)
    chosen = ",".join(given.sm or [_join(COMPUTE_CAPABILITIES)])
    try:
        capabilities = [int(part) for part in chosen.split(",")]
    except ValueError:
        parser.error(f"--sm {chosen}: expected numbers such as 80,89,120")
    try:
        from tqdm import tqdm

        dtypes = given.dtype.split(",")
        total = count_cubins(capabilities, dtypes)
        with (
            # Only what is there now is replaced, not what appears in the meantime.
            output_directory(given.out, marker=FILE_NAME, force=given.out.exists()) as directory,
            tqdm(total=total, unit="kernel", desc="compile", file=sys.stderr) as bar,
        ):
            index = build_cubins(directory, capabilities, bar.update, dtypes)
            write_table(index, directory)
    except OtterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    size = sum(cubin.size for cubin in index.cubins)
    print(f"{given.out}: {total} kernels, {size / 1e6:.1f} MB, {index.compiler}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
