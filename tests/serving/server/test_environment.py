"""L5: the server's environment: what is in it, and what it says when it cannot be had."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from examples import triton_environment
from examples.triton_environment import Environment, default_environment
from examples.triton_server import free_ports, start
from otter_export.errors import OtterError


def test_a_missing_server_is_said_with_what_to_do(tmp_path: Path) -> None:
    environment = Environment(tmp_path / "nothing")
    assert environment.problem() == "tritonserver is not installed; run: make triton-server"
    with pytest.raises(OtterError, match="make triton-server"):
        start(tmp_path, tmp_path / "log", ports=free_ports(), environment=environment)
    assert not (tmp_path / "log").exists()


def test_a_failed_installation_is_one_line_and_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_environment, "SERVER", "otter-export-has-no-such-package==0.0.0")
    # An index that answers nothing, so that this needs no network.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    environment = Environment(tmp_path / "server")
    with pytest.raises(
        OtterError, match="tritonserver cannot be installed here: ERROR: "
    ) as caught:
        environment.install()
    assert environment.problem() == str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_python_must_be_one_that_the_server_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_environment, "PYTHONS", ((3, 1),))
    with pytest.raises(OtterError, match=r"needs Python 3\.1 here"):
        Environment(tmp_path / "server").install()


def test_what_was_installed_for_something_else_is_made_again(tmp_path: Path) -> None:
    (tmp_path / ".installed").write_text("an older list of requirements")
    assert Environment(tmp_path).problem() is not None


def test_the_models_python_is_without_otter_export(installed: None) -> None:
    """So the other tests show that a repository brings all of it along."""
    python = default_environment().python
    code = "import numpy, tokenizers, onnxruntime; print(numpy.__version__)"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.stdout == "1.26.4\n"
    code = "import otter_export"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 1 and "No module named 'otter_export'" in done.stderr
