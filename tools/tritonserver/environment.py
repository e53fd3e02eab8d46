"""Triton Inference Server without a container: an environment of its own, in half a minute.

    python tools/tritonserver/environment.py    # makes .cache/tritonserver, if it is not there

The wheel ``nvidia-pytriton`` carries tritonserver 2.51 (24.10) with its Python backend. Around it
goes a virtual environment with what a model of ``otter-export triton`` imports and with the client.
It is separate because that backend needs numpy 1.26. otter-export itself is not in it: a model
repository brings its own copy.

For production take NVIDIA's container; the model repository is the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
from pathlib import Path

from otter_export.errors import OtterError

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
SERVER = "nvidia-pytriton==0.7.0"
#: Pythons for which both the server's backend and numpy 1.26 exist.
PYTHONS = ((3, 11), (3, 12))


@dataclasses.dataclass(frozen=True)
class Environment:
    """Where the server and its Python are.

    Args:
        home: The directory of both.
    """

    home: Path

    @property
    def python(self) -> Path:
        """The Python of models and clients."""
        return self.home / "venv" / "bin" / "python"

    @property
    def server(self) -> Path:
        """The program."""
        return self.home / "server" / "pytriton" / "tritonserver" / "bin" / "tritonserver"

    @property
    def backends(self) -> Path:
        """The server's ``--backend-directory``."""
        return self.server.parents[1] / "backends"

    @property
    def stub(self) -> Path:
        """The process in which the Python backend runs a model."""
        return self.backends / "python" / "triton_python_backend_stub"

    def variables(self) -> dict[str, str]:
        """The environment variables that the server needs: its Python first, and libpython."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        path = f"{self.python.parent}:{os.environ.get('PATH', '/usr/bin:/bin')}"
        library = sysconfig.get_config_var("LIBDIR") or ""
        return {**kept, "PATH": path, "LD_LIBRARY_PATH": str(library)}

    @property
    def _stamp(self) -> Path:
        return self.home / ".installed"

    @property
    def _failure(self) -> Path:
        return self.home / ".failed"

    def problem(self) -> str | None:
        """Why the server cannot be started, or None if it can."""
        if self._stamp.is_file() and self._stamp.read_text(encoding="utf-8") == _contents():
            return None
        if self._failure.is_file():
            return self._failure.read_text(encoding="utf-8")
        return "tritonserver is not installed; run: make triton-server"

    def install(self) -> None:
        """Make the environment, unless it is there already.

        Raises:
            OtterError: It cannot be had here; `problem` says the same from then on.
        """
        if self.problem() is None:
            self._stamp.touch()  # make compares its time with that of what it depends on
            return
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir(parents=True)
        try:
            self._install()
        except OtterError as error:
            self._failure.write_text(str(error), encoding="utf-8")
            raise
        # Last, so that an interrupted installation starts again.
        self._stamp.write_text(_contents(), encoding="utf-8")

    def _install(self) -> None:
        if sys.version_info[:2] not in PYTHONS:
            known = " or ".join(f"{major}.{minor}" for major, minor in PYTHONS)
            raise OtterError(
                f"the server of {SERVER} needs Python {known} here, and this is "
                f"{sys.version_info[0]}.{sys.version_info[1]}; run this with one of those"
            )
        venv = self.home / "venv"
        _run(sys.executable, "-m", "venv", "--without-pip", str(venv))
        self._pip("--no-deps", "--target", str(self.home / "server"), SERVER)
        self._pip("-r", str(REQUIREMENTS))
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        stubs = self.server.parents[1] / "python_backend_stubs"
        shutil.copy2(stubs / version / self.stub.name, self.stub)
        for program in (self.server, self.stub):
            program.chmod(program.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
        self._check_libraries()

    def _pip(self, *arguments: str) -> None:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        _run(*pip, "--python", str(self.python), "install", "--quiet", *arguments)

    def _check_libraries(self) -> None:
        """Both programs find their libraries; a Python without libpython.so would fail here."""
        for program in (self.server, self.stub):
            done = subprocess.run(
                ["ldd", str(program)], env=self.variables(), capture_output=True, text=True
            )
            missing = [line.split()[0] for line in done.stdout.splitlines() if "not found" in line]
            if missing:
                raise OtterError(
                    f"{program.name} cannot start: {', '.join(missing)} not found; use a Python "
                    "that was built with --enable-shared, or install its library package"
                )


def default_environment() -> Environment:
    """``$OTTER_EXPORT_CACHE/tritonserver``, or ``.cache/tritonserver`` in the checkout."""
    cache = os.environ.get("OTTER_EXPORT_CACHE")
    return Environment((Path(cache) if cache else ROOT / ".cache") / "tritonserver")


def _contents() -> str:
    """What is installed: if this changes, the environment is made again."""
    return f"{sys.version}\n{SERVER}\n{REQUIREMENTS.read_text(encoding='utf-8')}"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines or ["no output"]
        raise OtterError(f"tritonserver cannot be installed here: {errors[-1].strip()}")


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description="Make the environment of tritonserver.")
    parser.parse_args()
    environment = default_environment()
    if environment.problem() is not None:
        print(f"installing {SERVER} and its environment in {environment.home}", flush=True)
    try:
        environment.install()
    except OtterError as error:
        sys.exit(f"error: {error}")
    print(f"tritonserver is ready: {environment.server}")


if __name__ == "__main__":
    main()
