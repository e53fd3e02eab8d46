"""vLLM's workers with guidance in their runner."""

from __future__ import annotations

import functools
from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu_worker import Worker

from otter_export.plugins.vllm.admission import is_admission
from otter_export.plugins.vllm.candidates import CandidateAttention, CandidateSampler, install
from otter_export.plugins.vllm.sampler import OtterSampler


class _Guided:
    """What is put before vLLM's worker."""

    model_runner: Any
    vllm_config: Any
    _candidates: CandidateAttention | None = None

    def init_device(self) -> None:
        """Make the runner, which takes no processors beside drafts: ours has done its work."""
        model = self.vllm_config.model_config
        if self.vllm_config.speculative_config is not None:
            others = [p for p in model.logits_processors or () if not is_admission(p)]
            model.logits_processors = others or None
        super().init_device()  # type: ignore[misc]

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the model, then take over sampling."""
        super().load_model(*args, **kwargs)  # type: ignore[misc]
        runner = self.model_runner
        scores_candidates = runner.speculative_config is not None
        runner.sampler = (CandidateSampler if scores_candidates else OtterSampler)(runner)
        original = runner._get_prompt_logprobs_dict
        runner._get_prompt_logprobs_dict = functools.partial(
            runner.sampler.prompt_logprobs, original
        )
        if scores_candidates:
            self._candidates = install(runner)

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        """A step; notes which requests have candidates in it."""
        if self._candidates is not None:
            self._candidates.begin(scheduler_output.scheduled_spec_decode_tokens)
        return super().execute_model(scheduler_output, *args, **kwargs)  # type: ignore[misc]


class OtterCPUWorker(_Guided, CPUWorker):  # type: ignore[misc]
    """On CPUs."""


class OtterGPUWorker(_Guided, Worker):  # type: ignore[misc]
    """On GPUs."""
