"""Streams guided text from vLLM's server, each token with its reward (docs/vllm.md).

    python examples/vllm_client.py "The film was" --weight 4

Nothing but Python's own library is needed.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
from collections.abc import Iterator
from typing import Any


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Stream guided text from vLLM's server.")
    parser.add_argument("prompt")
    parser.add_argument("--weight", type=float, default=1.0, help="Of the signal; 0 is plain.")
    parser.add_argument("--signal", help="Its name.  [default: the model's first]")
    parser.add_argument("--top-k", type=int, default=8, help="Candidates of a token.")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    try:
        rewards = show(events(given))
    except (OSError, ValueError) as error:
        print(f"{given.host}:{given.port}: {error}", file=sys.stderr)
        return 2
    if rewards:
        print(f"\n\nmean reward {sum(rewards) / len(rewards):+.3f} of {len(rewards)} tokens")
    return 0


def events(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The events of one stream.

    Raises:
        OSError: The server cannot be reached.
        ValueError: It refused the request.
    """
    connection = http.client.HTTPConnection(given.host, given.port, timeout=600)
    guidance = {"otter_weight": given.weight, "otter_top_k": given.top_k, "otter_rewards": 1}
    if given.signal:
        guidance["otter_signal"] = given.signal
    body = {
        "prompt": given.prompt,
        "max_tokens": given.max_tokens,
        "temperature": given.temperature,
        "seed": given.seed,
        "stream": True,
        "vllm_xargs": guidance,
    }
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    answer = connection.getresponse()
    if answer.status != 200:
        text = answer.read().decode(errors="replace")
        raise ValueError(f"status {answer.status}: {text[:500]}")
    for line in answer:
        if line.startswith(b"data: {"):
            yield json.loads(line[len(b"data: ") :])


def show(stream: Iterator[dict[str, Any]]) -> list[float]:
    """Write the text as it comes, rewards behind the tokens; returns them."""
    rewards: list[float] = []
    for event in stream:
        for choice in event.get("choices", ()):
            new = [r for r in choice.get("otter", {}).get("rewards", ()) if r is not None]
            rewards += new
            marks = " ".join(f"{reward:+.2f}" for reward in new)
            print(f"{choice['text']}\033[2m[{marks}]\033[0m", end="", flush=True)
    return rewards


if __name__ == "__main__":
    raise SystemExit(main())
