"""L5: the wheel, installed as on an edge device: no torch, no onnx, numpy 1.26 and 2.x.

Needs the package index for the wheel's own dependencies; without it these tests are skipped, and
say so.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from otter_export.cli.main import COMMANDS
from tests import tiny

pytestmark = pytest.mark.slow

#: The oldest numpy that is supported, and the one that constraints.txt pins.
NUMPY = ("1.26.4", None)
#: What the network's absence looks like in pip's output.
_NO_NETWORK = re.compile(
    r"NewConnectionError|Max retries exceeded|Temporary failure in name resolution|"
    r"ConnectTimeout|ReadTimeout|Network is unreachable"
)
GENERATE = ("--prompt", "w5 w6", "--prompt", "w9 w10 w11", "--max-tokens", "12", "--json")


@dataclasses.dataclass(frozen=True)
class Environment:
    """A virtual environment that holds the wheel and what it requires, nothing else."""

    directory: Path

    def run(self, *command: object) -> subprocess.CompletedProcess[str]:
        """Run one of its programs, away from the checkout."""
        path = self.directory / "bin"
        # Nothing of the developer's environment may lead back to the checkout.
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_"))}
        return subprocess.run(
            [str(path / str(command[0])), *map(str, command[1:])],
            cwd=self.directory,
            env={**clean, "PATH": f"{path}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
        )

    def cli(self, *arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Run ``otter-export`` and check its exit status."""
        done = self.run("otter-export", *arguments)
        assert done.returncode == status, done.stderr
        return done


@pytest.fixture(scope="session")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel; built from a copy, so that no leftovers of a checkout get into it."""
    directory = tmp_path_factory.mktemp("wheel")
    source = directory / "source"
    unwanted = shutil.ignore_patterns(".*", "build", "dist", "out", "*.egg-info", "__pycache__")
    shutil.copytree(repository, source, symlinks=True, ignore=unwanted)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-w", str(directory)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, str(source)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (built,) = directory.glob("*.whl")
    return built


@pytest.fixture(scope="session", params=NUMPY, ids=lambda version: f"numpy {version or 'pinned'}")
def edge(
    request: pytest.FixtureRequest,
    wheel: Path,
    repository: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Environment:
    """The wheel, installed with the pinned versions of its own dependencies alone."""
    directory = tmp_path_factory.mktemp("edge")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
    pins = (repository / "constraints.txt").read_text().splitlines()
    if request.param is not None:
        pins = [pin for pin in pins if not pin.startswith("numpy==")] + [f"numpy=={request.param}"]
    (directory / "pins.txt").write_text("\n".join(pins))
    command = [sys.executable, "-m", "pip", "--python", str(directory / "bin" / "python")]
    command += ["install", "-c", str(directory / "pins.txt"), str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and _NO_NETWORK.search(done.stdout + done.stderr):
        pytest.skip("the package index cannot be reached, so the wheel cannot be installed")
    assert done.returncode == 0, done.stdout + done.stderr
    return Environment(directory)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("wheel") / "checkpoint")


@pytest.fixture(scope="session")
def engine(checkpoint: Path) -> Path:
    """A tiny engine, built by this environment, which has the extra for it."""
    pytest.importorskip("mobius")
    path = checkpoint.with_name("engine")
    command = [sys.executable, "-m", "otter_export", "build", str(checkpoint), "--out", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return path


def test_the_wheel_holds_every_package_and_nothing_else(wheel: Path, repository: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    packages = tomllib.loads((repository / "pyproject.toml").read_text())
    for package in packages["tool"]["setuptools"]["packages"]:
        assert package.replace(".", "/") + "/__init__.py" in names
    assert "otter_export/py.typed" in names
    assert "otter_export/web/page.html" in names
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"otter_export", next(t for t in tops if t.endswith(".dist-info"))}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    on_disk = {p for top in ("otter_export", "converters", "plugins")
               for p in (repository / top).rglob("*.py")}  # fmt: skip
    assert sum(name.endswith(".py") for name in names) == len(on_disk)


def test_nothing_heavy_is_installed(edge: Environment) -> None:
    for module in ("torch", "onnx", "onnx_ir", "mobius", "transformers", "matplotlib"):
        assert edge.run("python", "-c", f"import {module}").returncode != 0, module
    where = edge.run("python", "-c", "import otter_export; print(otter_export.__file__)")
    assert where.stdout.startswith(str(edge.directory))


def test_the_numpy_that_was_asked_for(edge: Environment, request: pytest.FixtureRequest) -> None:
    version = edge.run("python", "-c", "import numpy; print(numpy.__version__)").stdout.strip()
    expected = request.node.callspec.params["edge"]
    assert version == expected if expected else version.startswith("2.")


def test_the_runtime_imports_alone(edge: Environment) -> None:
    code = (
        "import pkgutil, importlib, otter_export.runtime as r\n"
        "for m in pkgutil.walk_packages(r.__path__, r.__name__ + '.'):\n"
        "    importlib.import_module(m.name)\n"
    )
    done = edge.run("python", "-W", "error::DeprecationWarning", "-c", code)
    assert done.returncode == 0, done.stderr


def test_commands_that_need_no_extra(edge: Environment, checkpoint: Path) -> None:
    assert edge.cli("--version").stdout.startswith("otter-export, version ")
    shown = edge.cli("--help").stdout
    for command in COMMANDS:
        assert f"  {command} " in shown
    edge.cli("list", "methods")
    edge.cli("list", "families")
    edge.cli("list", "signals")
    data = json.loads(edge.cli("inspect", checkpoint, "--json").stdout)
    assert data["base"]["family"] == "llama"


def test_insertion_needs_numpy_only(edge: Environment, checkpoint: Path) -> None:
    made, base = edge.directory / "inserted", edge.directory / "base"
    shutil.copytree(checkpoint, base, ignore=shutil.ignore_patterns("otter*"))
    arguments = ("--hidden-size", "16", "--init", "copy", "--force")
    edge.cli("insert", base, made, *arguments)
    here = edge.directory / "here"
    command = [sys.executable, "-m", "otter_export", "insert", base, here, *arguments]
    subprocess.run(command, check=True, capture_output=True)
    for name in ("otter.safetensors", "otter_config.json", "model.safetensors"):
        assert (made / name).read_bytes() == (here / name).read_bytes()


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("build CKPT --out new", "build"),
        ("train CKPT --data x --objective pairwise", "train"),
        ("reshape CKPT new", "train"),
    ],
)
def test_a_missing_extra_is_one_line(
    edge: Environment, checkpoint: Path, command: str, extra: str
) -> None:
    arguments = [checkpoint if word == "CKPT" else word for word in command.split()]
    done = edge.cli(*arguments, status=2)
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert f"pip install 'otter-export[{extra}]'" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def results(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_an_engine_generates_as_it_does_here(edge: Environment, engine: Path) -> None:
    edge.cli("inspect", engine)
    theirs = results(edge.cli("generate", engine, *GENERATE))
    command = [sys.executable, "-m", "otter_export", "generate", str(engine), *GENERATE]
    ours = subprocess.run(command, capture_output=True, text=True)
    assert ours.returncode == 0, ours.stderr
    for one, other in zip(theirs, results(ours), strict=True):
        assert one["token_ids"] == other["token_ids"] and len(one["token_ids"]) == 12
        # The same onnxruntime on the same processor; numpy only adds the weighted reward.
        assert one["rewards"] == pytest.approx(other["rewards"], abs=1e-6)
        # One for each token, and one more where a step was repeated.
        assert one["forwards"] == other["forwards"] >= 12
