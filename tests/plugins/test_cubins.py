"""L1: kernels compiled ahead of time: their machine code, arguments, resources."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from otter_export.errors import EngineError, UnsupportedError
from otter_export.plugins.cubin_index import ARGUMENTS, CubinIndex
from otter_export.plugins.cubins import (
    COMPUTE_CAPABILITIES,
    build_cubins,
    compile_kernel,
    count_cubins,
    main,
)
from otter_export.plugins.tiles import TILES, UNALIGNED_TILES

triton = pytest.importorskip(
    "triton", reason="OpenAI Triton, the kernel language, is not installed"
)

ELF = b"\x7fELF"
#: Shared memory that a block may have on the smallest of the architectures (8.6, 8.9 and 12.0).
SHARED_BYTES = 99 << 10


def _tool(name: str) -> str:
    """A program of the CUDA toolkit that comes with Triton."""
    path = Path(getattr(triton.knobs.nvidia, name).path)
    if not path.is_file():
        pytest.skip(f"Triton brings no {name}")
    return str(path)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_index_reads_back_as_built(cubins: CubinIndex) -> None:
    loaded = CubinIndex.load(cubins.directory)
    assert loaded == cubins
    assert loaded.compute_capabilities == (80, 90)
    on_disk = {str(p.relative_to(cubins.directory)) for p in cubins.directory.rglob("*.*")}
    assert set(loaded.files) == on_disk
    for cubin in loaded.cubins:
        assert loaded.read(cubin).startswith(ELF)


def test_every_tile_is_built_for_every_architecture(cubins: CubinIndex) -> None:
    for capability in (80, 90):
        chosen = cubins.select(capability, "float16")
        assert {c.tile for c in chosen if c.aligned} == set(TILES)
        assert {c.tile for c in chosen if not c.aligned} == set(UNALIGNED_TILES)


def test_kernels_fit_the_device_and_spill_nothing(cubins: CubinIndex) -> None:
    cuobjdump = _tool("cuobjdump")
    for cubin in cubins.cubins:
        path = str(cubins.directory / cubin.file)
        usage = _output(cuobjdump, "--dump-resource-usage", path)
        used = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage))
        assert f"Function {cubin.symbol}:" in usage
        assert used["STACK"] == used["LOCAL"] == "0", (cubin.file, usage)
        # 64 K registers; a block that needed more could not be launched at all.
        assert int(used["REG"]) * 32 * cubin.tile.warps <= 1 << 16
        assert cubin.shared_bytes <= SHARED_BYTES


@pytest.mark.parametrize("capability", COMPUTE_CAPABILITIES)
def test_each_architecture(capability: int, tmp_path: Path) -> None:
    compiled = compile_kernel(capability, "bfloat16", TILES[1], aligned=True)
    path = tmp_path / "kernel.cubin"
    path.write_bytes(compiled.asm["cubin"])
    header = _output(_tool("cuobjdump"), "-elf", str(path))[:4000]
    assert re.search(rf"\bsm={capability}a?\b", header), header[:300]
    _check_arguments(compiled)
    _check_instructions(compiled.asm["ptx"], "bf16")


def _check_arguments(compiled: Any) -> None:
    """What the kernel declares is what `KernelLibrary.launch` passes, in order and size."""
    ptx = compiled.asm["ptx"]
    entry = re.search(rf"\.visible \.entry {compiled.metadata.name}\((.*?)\)", ptx, re.DOTALL)
    assert entry is not None
    sizes = [int(bits) // 8 for bits in re.findall(r"\.param \.[ubs](\d+)", entry[1])]
    assert sizes == [size for _, size in ARGUMENTS]
    # The last two are scratch memory, passed as null: the kernel must not want any.
    assert compiled.metadata.global_scratch_size == compiled.metadata.profile_scratch_size == 0
    body = ptx[entry.end() :]
    for position in (len(ARGUMENTS) - 2, len(ARGUMENTS) - 1):
        assert f"{compiled.metadata.name}_param_{position}]" not in body


def _check_instructions(ptx: str, dtype: str) -> None:
    """Loads of 16 bytes ahead of their use, float32 sums on tensor cores, one rounding."""
    copies = re.findall(r"cp\.async\.\S+ \[[^]]*\], \[[^]]*\], (\w+)", ptx)
    assert copies and {int(size, 0) for size in copies} == {16}
    assert re.search(r"cp\.async\.wait_group\s+[1-9]", ptx), "no tiles in flight"
    # All that is left to plain loads is the bias.
    assert len(re.findall(r"\bld\.global", ptx)) <= 4
    assert f".f32.{dtype}.{dtype}.f32" in ptx  # mma: sums and addends are float32
    rounds = re.findall(rf"cvt\.\S+\.{dtype}(?:x2)?\.f32", ptx)
    assert rounds and all(".rn." in instruction for instruction in rounds)


def test_an_unaligned_kernel_copies_no_16_bytes() -> None:
    # Rows that start anywhere must not be read 16 bytes at a time: that would fault.
    ptx = compile_kernel(80, "float16", UNALIGNED_TILES[0], aligned=False).asm["ptx"]
    assert "cp.async.cg" not in ptx
    assert not re.search(r"ld\.global\S*\.v[248]", ptx)
    assert not re.search(r"ld\.global\S*\.[bu](32|64)", ptx)


def test_files_do_not_name_this_machine(cubins: CubinIndex) -> None:
    here = str(Path(__file__).resolve().parent.parent).encode()
    for cubin in cubins.cubins:
        assert here not in cubins.read(cubin)


def test_refusals(tmp_path: Path, cubins: CubinIndex) -> None:
    for capability in (75, 85, 0, -1, 10**9):
        with pytest.raises(UnsupportedError, match=rf"compute capability {capability}: .* 80,86"):
            build_cubins(tmp_path, (80, capability))
    with pytest.raises(UnsupportedError, match=r"type 'float32': .* float16, bfloat16"):
        build_cubins(tmp_path, (80,), dtypes=("float32",))
    assert not list(tmp_path.iterdir())
    with pytest.raises(EngineError, match=r"bfloat16 on compute capability 8\.0; it has float16"):
        cubins.select(80, "bfloat16")
    with pytest.raises(EngineError, match=r"capability 12\.0; it has float16 for 8\.0, 9\.0"):
        cubins.select(120, "float16")


def test_machine_code_runs_on_later_minor_versions_only(cubins: CubinIndex) -> None:
    assert {c.compute_capability for c in cubins.select(89, "float16")} == {80}
    # sm_90a is for 9.0 alone.
    with pytest.raises(EngineError, match="--sm 91"):
        cubins.select(91, "float16")


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "x"), "--sm", "80", "--dtype", "int8"]) == 2
    assert capsys.readouterr().err.endswith("the fused projection has float16, bfloat16\n")
    with pytest.raises(SystemExit, match="2"):
        main(["--out", str(tmp_path / "x"), "--sm", "all"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("kept")
    assert main(["--out", str(tmp_path / "mine"), "--sm", "80", "--dtype", "float16"]) == 2
    assert (tmp_path / "mine" / "file").read_text() == "kept"
    out = tmp_path / "out"
    command = [sys.executable, "-m", "otter_export.plugins.cubins", "--out", str(out)]
    printed = _output(*command, "--sm", "80", "--sm", "80", "--dtype", "float16")
    assert printed.startswith(f"{out}: {count_cubins((80,), ('float16',))} kernels")
    assert CubinIndex.load(out).compute_capabilities == (80,)


def test_interpreting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    with pytest.raises(UnsupportedError, match="TRITON_INTERPRET is set"):
        compile_kernel(80, "float16", TILES[0], aligned=True)
