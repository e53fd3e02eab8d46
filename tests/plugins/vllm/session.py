"""Runs in the environment that has vLLM: engines, one after another, and requests to each.

    python session.py JOBS.json RESULTS.json

A job is ``{"model": DIR, "options": {..}, "batches": [[{"prompt": [ids], ..}, ..], ..]}``; the
other entries of a request are fields of ``SamplingParams``. Requests of a batch are served
together. A result is a list of batches of answers, or ``{"error": text}``. With ``"preempts":
true`` the last entry is how often a request was preempted.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

# Engine and worker in this process, and two cores shared with everything else.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


def _engine(job: dict[str, Any]) -> Any:
    from vllm import LLM

    options = {
        "dtype": "float32",
        "max_model_len": 128,
        "kv_cache_memory_bytes": 64 << 20,
        "max_num_seqs": 256,
        "disable_log_stats": True,
        "seed": 0,
        **job.get("options", {}),
    }
    return LLM(model=job["model"], **options)


def _answers(llm: Any, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    prompts, params = [], []
    for request in requests:
        fields = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True, **request}
        prompts.append({"prompt_token_ids": fields.pop("prompt")})
        params.append(SamplingParams(detokenize=False, **fields))
    try:
        outputs = llm.generate(prompts, params, use_tqdm=False)
    except VLLMValidationError as error:  # refused where it was to be admitted
        return [{"error": str(error)} for _ in requests]
    return [
        {
            "outputs": [
                {"token_ids": list(o.token_ids), "logprobs": _logprobs(o.logprobs)}
                for o in output.outputs
            ],
            "prompt_logprobs": _logprobs(output.prompt_logprobs),
        }
        for output in outputs
    ]


def _logprobs(entries: Any) -> Any:
    if entries is None:
        return None
    return [
        None if one is None else [[token, value.logprob] for token, value in one.items()]
        for one in entries
    ]


def _register_classes() -> None:
    """Each class itself, where vLLM would start a process to look at it: 15 s a class."""
    from vllm import ModelRegistry

    from otter_export.plugins.vllm import model
    from otter_export.plugins.vllm.bases import ARCHITECTURES, base_architecture

    for name in ARCHITECTURES:
        base = base_architecture(name)
        ModelRegistry.register_model(base, ModelRegistry.models[base].load_model_cls())
        ModelRegistry.register_model(name, getattr(model, name))


#: The requests that were preempted by the engine at work.
_PREEMPTED: list[str] = []


def _note_preemptions() -> None:
    from vllm.v1.core.sched.scheduler import Scheduler

    preempt = Scheduler._preempt_request

    def noted(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        _PREEMPTED.append(request.request_id)
        return preempt(self, request, *args, **kwargs)

    Scheduler._preempt_request = noted


def _run(job: dict[str, Any]) -> Any:
    from vllm.distributed import cleanup_dist_env_and_memory

    started = time.perf_counter()
    _PREEMPTED.clear()
    try:
        llm = _engine(job)
    except Exception as error:
        if os.environ.get("OTTER_TRACEBACK"):
            raise
        return {"error": f"{type(error).__name__}: {error}"}
    print(f"{job['model']}: {time.perf_counter() - started:.1f} s", file=sys.stderr)
    try:
        found: list[Any] = [_answers(llm, batch) for batch in job["batches"]]
        return [*found, len(_PREEMPTED)] if job.get("preempts") else found
    except Exception as error:  # the engine is broken, and would go round in circles
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def main() -> None:
    """Run the jobs of a file."""
    jobs, results = map(Path, sys.argv[1:])
    _register_classes()
    _note_preemptions()
    found = []
    for job in json.loads(jobs.read_text()):
        found.append(_run(job))
        results.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
