"""Start Triton Inference Server on a model repository, on this machine alone.

    otter-export triton ENGINE --out model_repository
    python tools/tritonserver/server.py model_repository

Prints the addresses once the server is ready; serves until Ctrl-C, SIGTERM or ``--max-seconds``.
Install the server first: ``make triton-server``.

It serves the models of the repository and no others. A client that may load models may run any
code as the server's user: the Python backend takes a model's source from the request. So nobody
may, unless ``OTTER_CONTROL_KEY`` holds a key, which requests must carry then (docs/security.md).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import http.client
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__:
    from tools.tritonserver.environment import Environment, default_environment
else:  # run as a script
    from environment import Environment, default_environment

from otter_export.errors import OtterError

HOST = "127.0.0.1"
#: Name of the header that carries the key, and the variable that holds it.
CONTROL_HEADER = "otter-control-key"
CONTROL_VARIABLE = "OTTER_CONTROL_KEY"
#: What only the owner of a server needs. Each can run code, read memory or write files.
CONTROLLED = ("model-repository", "shared-memory", "trace", "logging")
_KEY = re.compile(r"[A-Za-z0-9_-]{16,128}")
#: Exit status of coreutils' ``timeout`` when it ended the program.
TIME_IS_UP = 124
#: The server waits this long for requests in flight before it exits.
EXIT_SECONDS = 10


@dataclasses.dataclass(frozen=True)
class Ports:
    """The three ports of a server; see `free_ports`."""

    http: int
    grpc: int
    metrics: int


class TritonServer:
    """A running tritonserver; a context manager that ends it.

    Args:
        repository: A model repository.
        ports: Where it listens, on 127.0.0.1.
        log: File for its output.
        lifetime_seconds: It ends by itself after this long; 0: never.
        control_key: Who sends it may load and unload models, and so run code; None: nobody may.
        arguments: More of the server's own options.
        variables: Environment variables of its own.
        environment: Where it is installed.

    Raises:
        OtterError: It is not installed, a port is taken, or the key is none.
    """

    def __init__(
        self,
        repository: Path,
        ports: Ports,
        log: Path,
        *,
        lifetime_seconds: float = 0,
        control_key: str | None = None,
        arguments: Sequence[str] = (),
        variables: dict[str, str] | None = None,
        environment: Environment | None = None,
    ) -> None:
        environment = environment or default_environment()
        problem = environment.problem()
        if problem is not None:
            raise OtterError(problem)
        _check_free(ports)
        self.ports = ports
        self.log = log
        command = [
            # It stops when the process that started it is gone, even by SIGKILL, ...
            *(("setpriv", "--pdeathsig=TERM") if shutil.which("setpriv") else ()),
            # ... and when its time is up. coreutils' timeout passes signals on.
            *("timeout", "--kill-after=30", f"{lifetime_seconds:g}"),
            str(environment.server),
            f"--model-repository={repository.resolve()}",
            f"--backend-directory={environment.backends}",
            *(f"--{name}-address={HOST}" for name in ("http", "grpc", "metrics")),
            *(f"--{name}-port={port}" for name, port in dataclasses.asdict(ports).items()),
            f"--exit-timeout-secs={EXIT_SECONDS}",
            *control_options(control_key),
            *("--allow-gpu-metrics=false", "--log-format=ISO8601"),
            *arguments,
        ]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                env={**environment.variables(), **(variables or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches this process alone, which then stops the server.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id of its process group."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def wait_ready(self, timeout_seconds: float = 120) -> None:
        """Return when every model is ready.

        Raises:
            OtterError: The server exits, or is not ready in time; it is stopped.
        """
        deadline = time.monotonic() + timeout_seconds
        while not self._ready():
            if not self.running:
                raise OtterError(f"tritonserver did not start: {self._why()}; see {self.log}")
            if time.monotonic() > deadline:
                self.stop()
                raise OtterError(
                    f"tritonserver was not ready after {timeout_seconds:g} s; see {self.log}"
                )
            time.sleep(0.1)

    def _ready(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self.ports.http, timeout=5)
        with (
            contextlib.suppress(OSError, http.client.HTTPException),
            contextlib.closing(connection),
        ):
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
        return False

    def _why(self) -> str:
        """The line of the log that says most."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        # Without a GPU, every start has that one, and it means nothing.
        errors = [e for e in lines if (" E " in e or "rror" in e) and "CudaDriver" not in e]
        # The first cause is the earliest; later ones follow from it.
        return " ".join((errors or lines[-1:] or ["no output"])[0].split())[:300]

    def wait(self) -> int:
        """Wait until it ends by itself; its exit status."""
        return self._process.wait()

    def stop(self, timeout_seconds: float = EXIT_SECONDS + 5) -> int:
        """End it as Ctrl-C would: requests in flight may finish; its exit status.

        What does not end in time is killed, with the processes of its models: tritonserver 24.10
        hangs when its own time is up while HTTP streams are open.
        """
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_seconds)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait()

    def __enter__(self) -> TritonServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


def control_options(key: str | None) -> list[str]:
    """Options that keep the control of a server from its clients.

    Args:
        key: What a request must carry in its header `CONTROL_HEADER`. None: the models are those
            that the repository has at the start, and the other protocols have a key that is thrown
            away.

    Raises:
        OtterError: The key has other characters, or is short.
    """
    if key is not None and not _KEY.fullmatch(key):
        raise OtterError(
            f"{CONTROL_VARIABLE} must have 16 to 128 letters, digits, '-' or '_'; make one with: "
            'python -c "import secrets; print(secrets.token_urlsafe())"'
        )
    restricted = f"{','.join(CONTROLLED)}:{CONTROL_HEADER}={key or secrets.token_urlsafe()}"
    explicit = ("--model-control-mode=explicit", "--load-model=*")
    return [
        *(explicit if key else ("--model-control-mode=none",)),
        f"--http-restricted-api={restricted}",
        f"--grpc-restricted-protocol={restricted}",
    ]


def free_ports() -> Ports:
    """Three ports of 127.0.0.1 that are free now.

    They lie below those that systems give to outgoing connections (from 32768 on Linux), so that
    none of them is taken before the server listens.
    """
    while True:
        ports = Ports(*random.sample(range(20_000, 32_000), 3))
        with contextlib.suppress(OtterError):
            _check_free(ports)
            return ports


def _check_free(ports: Ports) -> None:
    """Else whoever listens there would be taken for the server that is being started."""
    for name, port in dataclasses.asdict(ports).items():
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind((HOST, port))
            except (OSError, OverflowError) as error:
                raise OtterError(
                    f"cannot listen on {HOST}:{port}: {error}; choose another --{name}-port"
                ) from None


def start(
    repository: Path,
    log: Path,
    *,
    ports: Ports | None = None,
    timeout_seconds: float = 120,
    **options: Any,
) -> TritonServer:
    """Start a server and wait until it is ready.

    Args:
        repository: A model repository.
        log: File for its output.
        ports: Where it listens; None takes free ones.
        timeout_seconds: Time to get ready.
        options: Of `TritonServer`.

    Raises:
        OtterError: It is not installed, or does not start.
    """
    server = TritonServer(repository, ports or free_ports(), log, **options)
    try:
        server.wait_ready(timeout_seconds)
    except BaseException:
        server.stop()
        raise
    return server


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description="Serve a model repository on 127.0.0.1.")
    parser.add_argument("repository", type=Path, help="as `otter-export triton` writes it")
    parser.add_argument("--http-port", type=int, default=8000)
    parser.add_argument("--grpc-port", type=int, default=8001)
    parser.add_argument("--metrics-port", type=int, default=8002)
    log = default_environment().home / "server.log"
    parser.add_argument("--log", type=Path, default=log, help="its output [%(default)s]")
    parser.add_argument("--max-seconds", type=float, default=0.0, help="0: until it is stopped")
    parser.add_argument("--ready-seconds", type=float, default=300, help="time to load the engine")
    options = parser.parse_args()
    # A `kill` stops the server as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(_serve(options))
    except OtterError as error:
        sys.exit(f"error: {error}")


def _serve(options: argparse.Namespace) -> int:
    """Serve until told to stop; the exit status."""
    if not options.repository.is_dir():
        raise OtterError(
            f"{options.repository} is not a directory; make it with: "
            f"otter-export triton ENGINE --out {options.repository}"
        )
    ports = Ports(options.http_port, options.grpc_port, options.metrics_port)
    server = None
    try:
        server = start(
            options.repository,
            options.log,
            ports=ports,
            timeout_seconds=options.ready_seconds,
            lifetime_seconds=options.max_seconds,
            control_key=os.environ.get(CONTROL_VARIABLE) or None,
        )
        print(f"ready: http {HOST}:{ports.http}, grpc {HOST}:{ports.grpc}, ", end="")
        print(
            f"metrics {HOST}:{ports.metrics}/metrics; log: {options.log}; Ctrl-C stops", flush=True
        )
        status = server.wait()
    except KeyboardInterrupt:
        print("stopping; requests in flight may finish", file=sys.stderr, flush=True)
        return 0 if server is None else server.stop()
    # 124 is how `timeout` says that the time was up, after a clean stop.
    return 0 if status == TIME_IS_UP else status


if __name__ == "__main__":
    main()
