"""Runs engines of vLLM in the environment that has it; skipped where it cannot be had."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.vllm.reference import Reference

Jobs = list[dict[str, Any]]


@pytest.fixture(scope="session")
def vllm_python(repository: Path) -> Path:
    """The interpreter of ``make vllm-test``'s environment."""
    environment = repository / ".venv-vllm"
    if not (environment / ".installed").is_file():
        pytest.skip("vLLM is not installed here: make vllm-test")
    return environment / "bin" / "python"


@pytest.fixture(scope="session")
def vllm_environment() -> dict[str, str]:
    """Of its processes: no network, no reports, one thread."""
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "PYTHONWARNINGS": "ignore",
    }


@pytest.fixture(scope="session")
def run_jobs(
    vllm_python: Path, vllm_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Jobs], list[Any]]:
    """Engines, one after another in one process, and their answers; see session.py."""

    def run(jobs: Jobs, **environment: str) -> list[Any]:
        folder = tmp_path_factory.mktemp("vllm")
        (folder / "jobs.json").write_text(json.dumps(jobs, default=str))
        script = Path(__file__).with_name("session.py")
        done = subprocess.run(
            [vllm_python, script, folder / "jobs.json", folder / "results.json"],
            env={**vllm_environment, **environment},
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        found: list[Any] = json.loads((folder / "results.json").read_text())
        return found

    return run


@pytest.fixture(scope="session")
def references() -> Callable[[Path], Reference]:
    """The torch reference of a checkpoint, loaded once."""
    loaded: dict[Path, Reference] = {}

    def reference(checkpoint: Path) -> Reference:
        if checkpoint not in loaded:
            loaded[checkpoint] = Reference(checkpoint)
        return loaded[checkpoint]

    return reference
