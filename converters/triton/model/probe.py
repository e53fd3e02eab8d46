"""Health probe of a served model: generates one token. Exit status 0: alive; 1: not.

    python3 probe.py                          # liveness: a busy model is alive
    python3 probe.py --strict                 # readiness: a busy model is not ready
    python3 probe.py --recover                # if not alive, unload and load the model

``--recover`` needs a server with ``--model-control-mode=explicit``. Such a server loads any code
that it is sent, so it must ask for a key; the probe sends that of ``OTTER_CONTROL_KEY``, a variable
of the environment.

Triton's own ``/v2/health/ready`` asks the server, not the process in which the model runs: if that
process is killed, it goes on answering 200. This needs nothing but Python's own library.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.error
import urllib.request
from typing import Any

#: Answers of the model itself when it cannot take one request more: the model is alive.
BUSY = ("requests wait already", "seconds were over")
#: Header of ``--http-restricted-api``, and the variable with the key that it asks for.
CONTROL_HEADER = "otter-control-key"
CONTROL_VARIABLE = "OTTER_CONTROL_KEY"
#: Straight to the server, whatever proxy the environment names.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
#: A large engine takes its time.
_LOAD_SECONDS = 300.0


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description="Generate one token; exit status 0 or 1.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="[%(default)s]")
    parser.add_argument("--model", default="otter", help="[%(default)s]")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds [%(default)s]")
    parser.add_argument("--text", default="Hello", help="prompt [%(default)s]")
    parser.add_argument("--strict", action="store_true", help="a busy model is a failure")
    parser.add_argument(
        "--recover",
        action="store_true",
        help="if the probe fails, unload and load the model, then probe again; the server's key is "
        f"taken from the variable {CONTROL_VARIABLE}",
    )
    options = parser.parse_args()
    alive, reason = probe(options)
    if not alive and options.recover:
        print(f"not alive: {reason}; loading {options.model} again", file=sys.stderr)
        key = os.environ.get(CONTROL_VARIABLE)
        for action in ("unload", "load"):
            path = f"/v2/repository/models/{options.model}/{action}"
            status, answer = post(options, path, {}, _LOAD_SECONDS, key)
            if status != 200:
                print(f"{action} failed: {answer}", file=sys.stderr)
        alive, reason = probe(options)
    print(f"{'alive' if alive else 'not alive'}: {reason}")
    return 0 if alive else 1


def probe(options: argparse.Namespace) -> tuple[bool, str]:
    """Whether the model answers, and what it said."""
    fields = {
        "text_input": options.text,
        "max_tokens": 1,
        # The model gives up a little earlier than this probe, so that a busy one can say so.
        "deadline_ms": max(int(options.timeout * 900), 1),
    }
    path = f"/v2/models/{options.model}/generate"
    status, answer = post(options, path, fields, options.timeout)
    if status == 200 and "token_id" in answer:
        return True, f"token {answer['token_id']}, reward {answer['reward']}"
    message = str(answer.get("error", answer))
    busy = status > 0 and any(phrase in message for phrase in BUSY)
    return busy and not options.strict, message


def post(
    options: argparse.Namespace,
    path: str,
    fields: dict[str, Any],
    timeout: float,
    key: str | None = None,
) -> tuple[int, dict[str, Any]]:
    """HTTP status and JSON of a POST; status 0 if there is no answer."""
    headers = {"Content-Type": "application/json"} | ({CONTROL_HEADER: key} if key else {})
    request = urllib.request.Request(
        options.url.rstrip("/") + path, json.dumps(fields).encode(), headers
    )
    try:
        with _DIRECT.open(request, timeout=timeout) as response:
            return response.status, decoded(response.read())
    except urllib.error.HTTPError as error:
        return error.code, decoded(error.read())
    # Nobody listens, no answer in time, a broken one: all of it is "not alive".
    except (OSError, ValueError) as error:
        return 0, {"error": f"no answer from {options.url}: {error}"}


def decoded(body: bytes) -> dict[str, Any]:
    """The JSON object of a body, or its text as an error."""
    try:
        answer = json.loads(body or b"{}")
    except ValueError:
        answer = None
    return answer if isinstance(answer, dict) else {"error": body.decode("utf-8", "replace")[:200]}


if __name__ == "__main__":
    sys.exit(main())
