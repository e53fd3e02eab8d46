"""L5: no library reports on its user, and a command writes and looks up nothing beside its work."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import built

VARIABLES = ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "TRTLLM_NO_USAGE_STATS")
#: Runs commands, and fails on the first look-up or connection.
OFFLINE = """
import sys

def refuse(event, arguments):
    if event.startswith("socket.") and event.split(".")[1] in ("getaddrinfo", "connect", "sendto"):
        raise SystemExit(f"{event} {arguments}")

sys.addaudithook(refuse)
from otter_export.cli.main import main
main(sys.argv[1:])
"""


def files(directory: Path) -> set[str]:
    return {str(p.relative_to(directory)) for p in directory.rglob("*")}


@pytest.fixture
def fresh(tmp_path: Path) -> dict[str, str]:
    """An environment with an empty HOME, which opts out of nothing."""
    (tmp_path / "home").mkdir()
    kept = {k: v for k, v in os.environ.items() if k not in VARIABLES and "CACHE" not in k}
    packages = os.pathsep.join(path for path in sys.path if path)
    return {**kept, "HOME": str(tmp_path / "home"), "PYTHONPATH": packages}


def test_a_run_leaves_nothing_and_looks_nothing_up(tmp_path: Path, fresh: dict[str, str]) -> None:
    checkpoint = built.random_checkpoint(tmp_path / "checkpoint")
    engine = built.build(checkpoint, tmp_path / "engine")
    before = files(tmp_path)
    for arguments in (
        ["generate", str(engine), "--prompt", "w3", "--max-tokens", "2"],
        ["generate", str(checkpoint.directory), "--prompt", "w3", "--max-tokens", "2"],
        ["inspect", str(engine)],
    ):
        command = [sys.executable, "-c", OFFLINE, *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=fresh, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert files(tmp_path) == before, arguments


@pytest.mark.parametrize("given", [None, "0"])
def test_importing_the_package_opts_out(fresh: dict[str, str], given: str | None) -> None:
    code = f"import os, otter_export; print(*[os.environ.get(v) for v in {VARIABLES}])"
    env = fresh if given is None else {**fresh, **dict.fromkeys(VARIABLES, given)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [given or "1"] * len(VARIABLES)


def test_nothing_imports_onnx_runtime_before_the_package(repository: Path) -> None:
    """In `tests/` it is conftest.py that opts out; the package does it for what is inside."""
    late = []
    for folder in ("benchmarks", "examples", "tools"):
        for file in sorted((repository / folder).rglob("*.py")):
            text = file.read_text(encoding="utf-8")
            if "import onnxruntime" in text and not _opts_out(ast.parse(text)):
                late.append(str(file.relative_to(repository)))
    assert not late, "set ORT_DISABLE_TELEMETRY above the imports"


def _opts_out(module: ast.Module) -> bool:
    """Whether the variable is set above the import of ONNX Runtime."""
    for statement in module.body:
        source = ast.unparse(statement)
        if "ORT_DISABLE_TELEMETRY" in source:
            return True
        if "import onnxruntime" in source:
            return False
    return False
