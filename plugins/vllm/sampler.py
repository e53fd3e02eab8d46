"""vLLM's sampler with guidance by signals that score all next tokens, and rewards beside logprobs.

The order is that of every engine of ours: bans and penalties on the logits (vLLM's own), truncation
to candidates on the base's distribution, guidance, choice. A batch without guided requests takes
vLLM's own path. Everything is computed for all requests of a step together.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p
from vllm.v1.sample.sampler import Sampler

from otter_export.plugins.vllm.guidance import Guidance
from otter_export.plugins.vllm.rewards import with_rewards
from otter_export.signals import Scores, Signal, kind_of

#: Of scores, so that adding a reward never makes or breaks a tie by rounding.
_WIDE = torch.float64
#: What vLLM takes for greedy.
_GREEDY = 1e-5


@dataclasses.dataclass(frozen=True)
class Guided:
    """What one request of a batch asks for.

    Args:
        guidance: As it was sent.
        weights: Of each signal, the reported one first.
        uses: Signals that its choices depend on.
        by_candidates: Whether one of these scores candidates, which is done elsewhere.
    """

    guidance: Guidance
    weights: Mapping[str, float]
    uses: frozenset[str]
    by_candidates: bool

    @classmethod
    def of(cls, arguments: Mapping[str, Any] | None, signals: Sequence[Signal]) -> Guided:
        """The request with these ``extra_args``, which were checked at its admission."""
        guidance = Guidance.of(arguments)
        weights = guidance.named_weights(signals)
        uses = frozenset(n for n, weight in weights.items() if weight) | set(guidance.minimum)
        prefix = {s.name for s in signals if kind_of(s).scores is Scores.PREFIX}
        return cls(guidance, weights, uses, bool(uses & prefix))

    @property
    def is_local(self) -> bool:
        """Whether it is guided by signals that score all next tokens."""
        return bool(self.uses) and not self.by_candidates

    @property
    def reported(self) -> str:
        """The signal that comes back as the reward."""
        return next(iter(self.weights))


class Batch:
    """The guidance of the requests of a step; tensors have an entry a request.

    Attributes:
        requests: What each asks for.
        reports: Whether it wants its reward.
        local: Whether it is guided here.
        weights, minimum: Of each signal that some local request uses.
        top_k, top_p, gate: As in `Guidance`; the whole vocabulary, 1 and 0 where none guides.
    """

    def __init__(self, requests: Sequence[Guided], vocab_size: int, device: Any) -> None:
        self.requests = tuple(requests)

        def column(values: Iterable[float], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor(list(values), dtype=dtype, device=device)

        guidances = [r.guidance if r.uses else Guidance(top_k=None) for r in requests]
        self.reports = column((r.guidance.rewards for r in requests), torch.bool)
        self.local = column((r.is_local for r in requests), torch.bool)
        own = [r for r in requests if r.is_local]
        self.weights = {
            name: column((r.weights.get(name, 0.0) * r.is_local for r in requests), _WIDE)
            for name in sorted({name for r in own for name in r.uses})
        }
        self.minimum = {
            name: column(
                r.guidance.minimum.get(name, -math.inf) if r.is_local else -math.inf
                for r in requests
            )
            for name in sorted({name for r in own for name in r.guidance.minimum})
        }
        sizes = (min(g.top_k or vocab_size, vocab_size) for g in guidances)
        self.top_k = column(sizes, torch.int64)
        self.top_p = column(g.top_p for g in guidances)
        self.gate = column(g.gate for g in guidances)

    def unguided(self) -> Batch:
        """The same truncation, and no rewards."""
        other = copy.copy(self)
        other.local, other.weights, other.minimum = torch.zeros_like(self.local), {}, {}
        return other

    @property
    def is_guided(self) -> bool:
        """Whether rewards can change a choice here."""
        return bool(self.weights)

    @property
    def is_reported(self) -> bool:
        """Whether a request wants its reward."""
        return any(r.guidance.rewards for r in self.requests)


class SignalRows:
    """The signals of some rows of the model, each computed when it is first asked for."""

    def __init__(self, model: Any) -> None:
        self._heads, self._rows = model.otter_signals, model.channel_rows
        self._found: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        """``[R, 1]`` or ``[R, V]``."""
        if name not in self._found:
            self._found[name] = self._heads[name](self._rows)
        return self._found[name]

    def of_tokens(self, names: Sequence[str], tokens: Tensor) -> Tensor:
        """The reward of each row's token, ``[R]``; a value is that of the row's prefix.

        Args:
            names: Each row's signal.
            tokens: ``[R]`` int64.
        """
        found = torch.empty(len(names), dtype=torch.float32, device=tokens.device)
        for name in set(names):
            rows = torch.tensor([n == name for n in names], device=tokens.device)
            values = self[name]
            column = tokens if values.shape[-1] > 1 else torch.zeros_like(tokens)
            found = torch.where(rows, values.gather(1, column[:, None])[:, 0], found)
        return found


class OtterSampler(Sampler):  # type: ignore[misc]
    """The sampler of a runner whose model has a channel.

    Args:
        runner: vLLM's model runner, with its own sampler in place.
    """

    def __init__(self, runner: Any) -> None:
        own = runner.sampler
        super().__init__(logprobs_mode=own.logprobs_mode, use_fp64_gumbel=own.use_fp64_gumbel)
        self.topk_topp_sampler = own.topk_topp_sampler
        self._runner = (runner,)  # no submodule
        self.vocab_size = runner.model_config.get_vocab_size()
        self.batch: Batch | None = None
        self._requests: tuple[str, ...] = ()
        self.signals: SignalRows | None = None
        self._prompt_signal: str | None = None

    def current_batch(self) -> Batch:
        """The guidance of the runner's requests; computed anew when they change."""
        runner = self._runner[0]
        requests = tuple(runner.input_batch.req_ids)
        if self.batch is None or requests != self._requests:
            params = [runner.requests[request].sampling_params for request in requests]
            signals = runner.model.signals
            asked = [Guided.of(p.extra_args if p else None, signals) for p in params]
            self.batch = Batch(asked, self.vocab_size, runner.device)
            self._requests = requests
        return self.batch

    def forward(self, logits: Tensor, sampling_metadata: Any, *args: Any, **kwargs: Any) -> Any:
        """Sample a token a row; the logprobs of requests that want it hold their reward."""
        runner = self._runner[0]
        if len(runner.input_batch.req_ids) != len(logits):  # a rehearsal without requests
            self.batch = None
            return super().forward(logits, sampling_metadata, *args, **kwargs)
        batch = self.current_batch()
        self.signals = SignalRows(runner.model)
        output = super().forward(logits, sampling_metadata, *args, **kwargs)
        tensors = output.logprobs_tensors
        if tensors is None or not batch.is_reported or sampling_metadata.logprob_token_ids:
            return output
        sampled = output.sampled_token_ids[:, 0].long()
        rewards = self.signals.of_tokens([r.reported for r in batch.requests], sampled)
        with_them = with_rewards(tensors, rewards, batch.reports, self.vocab_size)
        return SamplerOutput(output.sampled_token_ids, with_them)

    def sample(self, logits: Tensor, sampling_metadata: Any, *args: Any, **kwargs: Any) -> Any:
        """Truncate on the base, guide, choose; see the module's docstring."""
        batch = self.batch
        if batch is None or not batch.is_guided:
            return super().sample(logits, sampling_metadata, *args, **kwargs)
        scores, temperature, greedy = self.scores(logits, sampling_metadata, batch)
        best = scores.argmax(dim=-1)
        warm = (scores / temperature[:, None]).float()
        processed = None
        if self.logprobs_mode == "processed_logits":
            processed = warm
        elif self.logprobs_mode == "processed_logprobs":
            processed = warm.log_softmax(dim=-1)
        if sampling_metadata.all_greedy:
            return best, processed
        drawn, _ = self.topk_topp_sampler(warm, sampling_metadata.generators, None, None)
        return torch.where(greedy, best, drawn), processed

    def scores(self, logits: Tensor, metadata: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of the candidates, ``[B, V]`` float64 and minus infinity elsewhere.

        Args:
            logits: ``[B, V]`` float32, after bans and penalties.
            metadata: vLLM's.
            batch: Of these rows.

        Returns:
            Scores; the temperature of each row, 1 where it is greedy; whether it is.
        """
        signals = self.signals
        assert signals is not None
        greedy = torch.ones_like(batch.local)
        temperature = torch.ones_like(batch.top_p)
        if metadata.temperature is not None:
            greedy = metadata.temperature < _GREEDY
            temperature = torch.where(greedy, temperature, metadata.temperature)
        warm = logits / temperature[:, None]
        for processor in metadata.logitsprocs.argmax_invariant:
            warm = processor.apply(warm)
        top_k, top_p = batch.top_k, batch.top_p
        if metadata.top_k is not None:
            top_k = torch.minimum(top_k, metadata.top_k)
        if metadata.top_p is not None:
            top_p = torch.minimum(top_p, metadata.top_p)
        is_whole = bool((top_p >= 1).all())
        truncated = apply_top_k_top_p(warm, top_k, None if is_whole else top_p)
        allowed = truncated > -math.inf
        rewards = sum(w[:, None] * signals[name] for name, w in batch.weights.items())
        guides = batch.local
        if bool((batch.gate > 0).any()):
            guides = guides & (entropy(logits) >= batch.gate)
        wide = logits.to(_WIDE)
        scores = torch.where(guides[:, None], wide + rewards, wide)
        if batch.minimum:
            enough = torch.ones_like(allowed)
            for name, least in batch.minimum.items():
                enough &= signals[name] >= least[:, None]
            enough |= ~guides[:, None]
            both = allowed & enough
            allowed = torch.where(both.any(dim=-1, keepdim=True), both, allowed)
        return scores.masked_fill(~allowed, -math.inf), temperature, greedy

    def gather_logprobs(self, logprobs: Tensor, num_logprobs: int, token_ids: Tensor) -> Any:
        """vLLM's; of a prompt whose rewards are asked for with these."""
        tensors = super().gather_logprobs(logprobs, num_logprobs, token_ids)
        if self._prompt_signal is None:
            return tensors
        rows = SignalRows(self._runner[0].model)
        rewards = rows.of_tokens([self._prompt_signal] * len(token_ids), token_ids)
        every = torch.ones_like(token_ids, dtype=torch.bool)
        return with_rewards(tensors, rewards, every, self.vocab_size)

    def prompt_logprobs(self, original: Any, *args: Any) -> dict[str, LogprobsTensors | None]:
        """The runner's function, a request at a time, so that each has its own signal.

        Args:
            original: Of the runner; goes through its ``num_prompt_logprobs``.
            args: The function's.
        """
        runner = self._runner[0]
        everything = runner.num_prompt_logprobs
        found: dict[str, LogprobsTensors | None] = {}
        for request, count in list(everything.items()):
            arguments = runner.requests[request].sampling_params.extra_args
            asked = Guided.of(arguments, runner.model.signals)
            if asked.guidance.rewards and count > 0:
                self._prompt_signal = asked.reported
            runner.num_prompt_logprobs = {request: count}
            try:
                found |= original(*args)
                if not runner.num_prompt_logprobs:
                    del everything[request]
            finally:
                self._prompt_signal, runner.num_prompt_logprobs = None, everything
        return found


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the distribution of each row in nats, ``[B]``; logits may be minus infinity."""
    return torch.special.entr(logits.double().softmax(dim=-1)).sum(dim=-1).float()
