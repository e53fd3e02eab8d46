"""Tokens per second in vLLM: the base's own class, the channel beside it, and guidance.

    python -m benchmarks.vllm CKPT [--quick]

Engines run one after another in the environment that has vLLM (.venv-vllm of ``make vllm-test``);
each serves the same prompts alone and sixteen at a time, its kinds of requests in turns. Ratios
divide by the base's class run eagerly, as the channel is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
PYTHON = REPOSITORY / ".venv-vllm" / "bin" / "python"
SPECULATIVE = {
    "method": "custom_class",
    "model": "otter_export.plugins.vllm.candidates.Proposer",
    "num_speculative_tokens": 8,
}
CROWD = 16


def main() -> None:
    """The command; prints a table, and JSON with ``--out``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5, help="after one that warms up")
    parser.add_argument("--quick", action="store_true", help="8 tokens, one round.")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    given = parser.parse_args()
    tokens, rounds = (8, 1) if given.quick else (given.tokens, given.rounds)
    if given.engine is not None:
        print(json.dumps(measure(json.loads(given.engine), tokens, rounds)))
        return
    from otter_export.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(given.checkpoint)
    rows = []
    for engine in engines(checkpoint):
        command = [str(PYTHON), "-m", "benchmarks.vllm", str(given.checkpoint)]
        command += ["--engine", json.dumps(engine)]
        command += ["--tokens", str(tokens), "--rounds", str(rounds)]
        done = subprocess.run(
            command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True
        )
        rows += json.loads(done.stdout.splitlines()[-1])
    report(rows)
    if given.out is not None:
        given.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def engines(checkpoint: Any) -> list[dict[str, Any]]:
    """What is started, and which requests each gets."""
    path, signals = str(checkpoint.directory), checkpoint.config.signals
    values = [s.name for s in signals if s.kind == "value"]
    others = [s.name for s in signals if s.kind in ("q_value", "expert")]
    local = {f"{name}, guided": {"otter_signal": name, "otter_weight": 2.0} for name in others}
    first = next(iter((*values, *others)))
    beside = {"plain": {}, "rewards": {"otter_signal": first, "otter_rewards": 1}, **local}
    found: list[dict[str, Any]] = [
        {
            "name": "base",
            "model": str(checkpoint.base.directory),
            "eager": True,
            "requests": {"plain": {}},
        },
        {
            "name": "base, compiled",
            "model": str(checkpoint.base.directory),
            "requests": {"plain": {}},
        },
        {"name": "channel", "model": path, "eager": True, "requests": beside},
    ]
    if values:
        guided = {"otter_signal": values[0], "otter_weight": 2.0}
        asked = {"plain": {}, f"{values[0]}, guided": guided}
        found.append(
            {"name": "candidates", "model": path, "eager": True, "fed": True, "requests": asked}
        )
    return found


def measure(engine: dict[str, Any], tokens: int, rounds: int) -> list[dict[str, Any]]:
    """Tokens per second of one engine's kinds of requests; the best round of each counts."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    from vllm import LLM, SamplingParams

    started = time.perf_counter()
    llm = LLM(
        engine["model"],
        dtype="float32",
        max_model_len=256 if tokens > 8 else 64,
        kv_cache_memory_bytes=1 << 30,
        enforce_eager=engine.get("eager", False),
        speculative_config=SPECULATIVE if engine.get("fed") else None,
        enable_prefix_caching=False,
    )
    start = time.perf_counter() - started
    rows = []
    for count in (1, CROWD):
        prompts = [{"prompt_token_ids": [3 + i, 5, 9, 20, 33]} for i in range(count)]
        best: dict[str, float] = {}
        for _ in range(rounds + 1):  # the first warms up
            for name, arguments in engine["requests"].items():
                rewards = 1 if arguments.get("otter_rewards") else None
                params = SamplingParams(
                    temperature=0,
                    max_tokens=tokens,
                    ignore_eos=True,
                    logprobs=rewards,
                    extra_args=arguments,
                )
                begun = time.perf_counter()
                llm.generate(prompts, params, use_tqdm=False)
                rate = count * tokens / (time.perf_counter() - begun)
                best[name] = max(rate, best.get(name, 0.0))
        for name, rate in best.items():
            row = {"engine": engine["name"], "requests": name, "together": count}
            rows.append({**row, "tokens/s": round(rate, 1), "start s": round(start, 1)})
    return rows


def report(rows: list[dict[str, Any]]) -> None:
    """A table on standard output."""
    base = {r["together"]: r["tokens/s"] for r in rows if r["engine"] == "base"}
    print("| engine | requests | together | tokens/s | of the base | start, s |")
    print("|---|---|---|---|---|---|")
    for r in rows:
        share = r["tokens/s"] / base[r["together"]]
        cells = (
            r["engine"],
            r["requests"],
            r["together"],
            r["tokens/s"],
            f"{share:.2f}",
            r["start s"],
        )
        print("| " + " | ".join(map(str, cells)) + " |")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
