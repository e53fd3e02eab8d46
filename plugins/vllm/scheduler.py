"""A request that waits for its candidates gives no token; its last one is fed again beside them."""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler


class OtterScheduler(Scheduler):  # type: ignore[misc]
    """vLLM's, for engines that score candidates."""

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """vLLM's; then what was held back has its last token left to compute."""
        index = model_runner_output.req_id_to_index
        sampled = model_runner_output.sampled_token_ids
        held = []
        for name in scheduler_output.num_scheduled_tokens:
            request = self.requests.get(name)
            if request is None or name not in index:
                continue
            is_fed = request.num_computed_tokens >= request.num_tokens
            if is_fed and not (sampled and sampled[index[name]]):
                held.append(request)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for request in held:
            if not request.is_finished():
                request.num_computed_tokens = request.num_tokens - 1
        return outputs
