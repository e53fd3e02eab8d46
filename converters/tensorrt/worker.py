"""The builder's own process: ``python -m otter_export.converters.tensorrt.worker JOB FD``.

TensorRT may abort or fault on a graph that it does not expect, keeps memory until a process ends,
and finds its libraries by an environment that must be set before a process starts. So it gets one.
It writes JSON lines to the file descriptor FD: ``{"progress": 0.5}`` now and then, and at last
``{"built": {...}}`` or ``{"error": "..."}``.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from otter_export.converters.tensorrt import network as native
from otter_export.converters.tensorrt.job import Job
from otter_export.errors import EngineError, OtterError

Send = Callable[[dict[str, Any]], None]


def run(job: Job, send: Send) -> dict[str, Any]:
    """Parse, build, write; returns the fields of `otter_export.converters.tensorrt.job.Built`.

    Raises:
        EngineError: TensorRT cannot be loaded, refuses the graph or fails to build it.
    """
    trt = _load(job)
    complaints = native.Complaints()
    logger = native.make_logger(trt, complaints)
    builder = trt.Builder(logger)
    started = time.perf_counter()
    network, parser = native.parse(trt, builder, logger, Path(job.model), complaints)
    parsed = time.perf_counter()
    monitor = _monitor(trt, send)
    config = native.configure(trt, builder, network, job, monitor)
    partial = Path(f"{job.engine}.partial")
    if not native.write_plan(trt, builder, network, config, partial):
        raise EngineError(f"{trt.__name__} {trt.__version__} cannot build this: {complaints}")
    del parser  # not before: it holds the weights
    partial.replace(job.engine)
    return {
        "version": str(trt.__version__),
        "layers": native.layer_counts(network),
        "inputs": native.tensors(network.num_inputs, network.get_input),
        "outputs": native.tensors(network.num_outputs, network.get_output),
        "plan_bytes": Path(job.engine).stat().st_size,
        "parse_seconds": round(parsed - started, 3),
        "build_seconds": round(time.perf_counter() - parsed, 3),
        "peak_memory_bytes": peak_memory(),
    }


def _load(job: Job) -> Any:
    """Import the library and register the plugin."""
    try:
        trt = importlib.import_module(job.library)
    except (ImportError, OSError) as error:
        raise EngineError(f"{job.library} is installed but cannot be loaded: {error}") from None
    if job.cubins is not None:
        from otter_export.plugins.tensorrt import register

        register(trt, Path(job.cubins))
    return trt


def _monitor(trt: Any, send: Send) -> Any:
    """Reports the share of the outermost phase's steps that are done; called from any thread."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._lock = threading.Lock()
            self._outermost: dict[str, int] = {}

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            with self._lock:
                if parent is None and steps > 0:
                    self._outermost[name] = steps

        def step_complete(self, name: str, step: int) -> bool:
            with self._lock:
                steps = self._outermost.get(name)
            if steps is None:
                return True
            try:
                send({"progress": min(1.0, (step + 1) / steps)})
            except OSError:
                return False  # nobody waits for this engine any more: end the build
            return True

        def phase_finish(self, name: str) -> None:
            with self._lock:
                self._outermost.pop(name, None)

    return Monitor()


def peak_memory() -> int:
    """Largest resident size of this process in bytes.

    Not of getrusage: its number includes the parent, from which this process was forked.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(arguments: list[str]) -> int:
    """Run the job of the first argument, answering on the file descriptor of the second."""
    job = Job.from_json(json.loads(arguments[0]))
    with os.fdopen(int(arguments[1]), "w", encoding="utf-8", buffering=1) as answers:

        def send(message: dict[str, Any]) -> None:
            answers.write(json.dumps(message) + "\n")

        try:
            send({"built": run(job, send)})
        except (OtterError, OSError, MemoryError) as error:
            send({"error": " ".join(str(error).split()) or type(error).__name__})
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
