"""Run a build in the builder's own process, and turn whatever happens there into one answer."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from otter_export.converters.tensorrt.job import Built, Job
from otter_export.errors import EngineError

_WORKER = "otter_export.converters.tensorrt.worker"
#: Bytes of the process's own output that go into an error.
_TAIL = 400


def build(job: Job, progress: Callable[[float], None] | None = None) -> Built:
    """Build an engine in a process of its own.

    Args:
        job: What to build.
        progress: Called with the share that is done, 0 to 1.

    Raises:
        EngineError: TensorRT cannot build it, or its process ended early.
    """
    with contextlib.ExitStack() as stack:
        libraries = stack.enter_context(_library_directory(job.library))
        log = stack.enter_context(tempfile.TemporaryFile())
        reader, writer = os.pipe()
        answers = stack.enter_context(os.fdopen(reader, encoding="utf-8"))
        try:
            process = subprocess.Popen(
                # -P: a folder `otter_export` in the working directory must not take precedence.
                [sys.executable, "-P", "-m", _WORKER, json.dumps(job.to_json()), str(writer)],
                env=_environment(libraries),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(writer,),
            )
        finally:
            os.close(writer)
        stack.callback(_end, process)
        for line in answers:
            message = json.loads(line)
            if "built" in message:
                return Built.from_json(message["built"])
            if "error" in message:
                raise EngineError(message["error"])
            if progress is not None:
                progress(float(message["progress"]))
        raise EngineError(_early_end(job.library, process.wait(), _tail(log)))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave no process behind: one that has answered is done, and so is one nobody waits for."""
    process.kill()
    process.wait()


def _early_end(library: str, status: int, tail: str) -> str:
    if status < 0:
        name = signal.Signals(-status).name
        what = f"was ended by {name}"
        if name == "SIGKILL":
            what += " (often: no memory is left)"
    else:
        what = f"ended with status {status}"
    said = f"; its last words: {tail}" if tail else ""
    return f"the process of {library} {what} before the engine was built{said}"


def _tail(log: IO[bytes]) -> str:
    """The end of what the process printed."""
    log.seek(0)
    return " ".join(log.read().decode("utf-8", "replace").split())[-_TAIL:]


@contextlib.contextmanager
def _library_directory(module: str) -> Iterator[Path | None]:
    """A private directory in which the library is found under its name without a version.

    The ONNX parser of TensorRT-RTX opens ``libtensorrt_rtx.so`` by that name when a plugin is
    registered; the wheel brings ``libtensorrt_rtx.so.1`` alone, and the parser then aborts.
    """
    spec = importlib.util.find_spec(f"{module}_libs")
    if spec is None or not spec.submodule_search_locations:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="otter-export-libraries-") as name:
        for folder in map(Path, spec.submodule_search_locations):
            for library in sorted(folder.glob("lib*.so.*")):
                plain = Path(name) / library.name.partition(".so.")[0]
                plain = plain.with_name(f"{plain.name}.so")
                if not plain.is_symlink():
                    plain.symlink_to(library.resolve())
        yield Path(name)


def _environment(libraries: Path | None) -> dict[str, str]:
    """This process's environment, with the library directory first."""
    environment = dict(os.environ)
    if libraries is not None:
        before = environment.get("LD_LIBRARY_PATH")
        environment["LD_LIBRARY_PATH"] = f"{libraries}:{before}" if before else str(libraries)
    return environment
