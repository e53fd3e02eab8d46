"""Guidance by ``value`` signals: k candidates of a token scored in one forward pass.

vLLM's speculative decoding feeds drafts behind the last token. Here the drafts are the k likeliest
next tokens, all at the same position: a step runs ``[last, c1 .. ck]``, and each candidate has to
see the prefix and itself. So every attention runs once for the ordinary rows and once for each rank
of candidates, which write the same slot of the cache one after another: no tree mask and no kernel
of ours. What a step chooses, the next one feeds again as its last token, so the cache is right.

A request gives a token only where its candidates were scored. After its prompt, or when it comes
back from a preemption, none were: it is held back for one step, by `OtterScheduler`.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.forward_context import get_forward_context, override_forward_context
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.sample.rejection_sampler import RejectionSampler

from otter_export.plugins.vllm.rewards import with_rewards
from otter_export.plugins.vllm.sampler import Guided, OtterSampler, SignalRows, entropy

#: No token: what vLLM leaves out of a step's output.
NONE = -1
#: The rows of one call of an attention, its metadata, and the slots that it writes.
Call = tuple[Tensor, Any, Tensor]


@dataclasses.dataclass
class Step:
    """What one step leaves for the next: of the requests of its batch, by their place there.

    Args:
        logits: ``[B, V]`` float32: after each request's last token; only `waiting` rows count.
        waiting: Requests whose candidates are to be drawn from them.
    """

    logits: Tensor
    waiting: list[int]


class CandidateSampler(OtterSampler):
    """Holds back requests that are guided by candidates; they wait in `step`."""

    def __init__(self, runner: Any) -> None:
        super().__init__(runner)
        self.step: Step | None = None
        #: Candidates that the last step proposed, by request.
        self.proposed: dict[str, list[int]] = {}

    def forward(self, logits: Tensor, sampling_metadata: Any, *args: Any, **kwargs: Any) -> Any:
        """A token for every request but those."""
        raw = logits.float().clone()
        runner = self._runner[0]
        if len(runner.input_batch.req_ids) == len(logits):
            asked = self.current_batch().requests
            # A draw for a request that is held back would make its text depend on when it was.
            generators = {
                i: generator
                for i, generator in sampling_metadata.generators.items()
                if not asked[i].by_candidates
            }
            sampling_metadata = dataclasses.replace(sampling_metadata, generators=generators)
        output = super().forward(logits, sampling_metadata, *args, **kwargs)
        if self.batch is None:
            return output
        waiting = [i for i, request in enumerate(self.batch.requests) if request.by_candidates]
        self.step = Step(raw, waiting)
        # Two columns: of one, vLLM would take every entry for a token.
        tokens = torch.full((len(raw), 2), NONE, dtype=torch.int32, device=raw.device)
        tokens[:, :1] = output.sampled_token_ids
        tokens[waiting] = NONE
        tensors = output.logprobs_tensors
        if tensors is not None:
            tensors = LogprobsTensors(*(torch.repeat_interleave(t, 2, 0) for t in tensors[:3]))
        return SamplerOutput(tokens, tensors)

    def propose(self) -> list[list[int]]:
        """The candidates of each waiting request, best first; after the step's tokens are known."""
        runner, step, batch = self._runner[0], self.step, self.batch
        self.step, self.proposed = None, {}
        requests = runner.input_batch.req_ids
        drafts: list[list[int]] = [[] for _ in requests]
        if step is None or batch is None or not step.waiting:
            return drafts
        metadata = runner.input_batch.sampling_metadata
        for processor in metadata.logitsprocs.non_argmax_invariant:
            processor.update_state(None)  # they count tokens, and this step's were added
        logits = self.apply_logits_processors(step.logits, metadata, False)
        self.signals = SignalRows(runner.model)
        scores, _, greedy = self.scores(logits, metadata, batch.unguided())
        closed = entropy(logits) < batch.gate
        for i in step.waiting:
            guided = batch.requests[i]
            values, ids = scores[i].topk(int(batch.top_k[i]))
            is_possible = values > -torch.inf
            if greedy[i]:
                is_possible &= values >= values[0] - (0.0 if closed[i] else self._reach(guided))
            drafts[i] = ids[is_possible].tolist()
            self.proposed[requests[i]] = drafts[i]
        return drafts

    def _reach(self, request: Guided) -> float:
        """How far below the best logit a candidate can lie and still win, exactly."""
        if request.guidance.minimum:
            return torch.inf
        bounds = {s.name: s.bounds for s in self._runner[0].model.signals}
        reach = 0.0
        for name in request.uses:
            low, high = bounds[name] or (0.0, torch.inf)
            reach += abs(request.weights[name]) * (high - low)
        return reach


class CandidateChooser(RejectionSampler):  # type: ignore[misc]
    """Takes the place of vLLM's rejection sampler: rows are ``[last, c1 .. ck]`` a request."""

    def __init__(self, runner: Any, sampler: CandidateSampler) -> None:
        super().__init__(sampler, runner.speculative_config, runner.device)
        self._runner, self._own = (runner,), sampler

    def forward(
        self, metadata: Any, draft_probs: Any, logits: Tensor, sampling_metadata: Any
    ) -> SamplerOutput:
        """A token a request: never a draft behind another, so none bypasses guidance."""
        runner, own = self._runner[0], self._own
        counts = list(metadata.num_draft_tokens)
        firsts = torch.tensor([0, *(n + 1 for n in counts)]).cumsum(0)[:-1].tolist()
        everything = logits.float()
        all_rows = runner.model.channel_rows
        first = torch.tensor(firsts, device=logits.device)
        runner.model.channel_rows = all_rows[first]
        output = own.forward(everything[first], sampling_metadata)
        tokens, batch = output.sampled_token_ids, own.batch
        assert batch is not None and own.step is not None
        chosen = self._choose(
            everything, all_rows, firsts, counts, metadata.draft_token_ids, sampling_metadata
        )
        if not chosen:
            return output
        rewards = torch.zeros(len(counts), device=logits.device)
        for i, (token, reward, row) in chosen.items():
            tokens[i, 0], rewards[i] = token, reward
            own.step.logits[i] = everything[row]
        tensors = output.logprobs_tensors
        if tensors is not None:
            tensors = self._with_logprobs(tensors, everything[first], tokens, rewards, set(chosen))
        return SamplerOutput(tokens, tensors)

    def _with_logprobs(
        self, tensors: LogprobsTensors, raw: Tensor, tokens: Tensor, rewards: Tensor, rows: set[int]
    ) -> LogprobsTensors:
        """The logprobs of tokens that were chosen among candidates, and their rewards."""
        own, batch = self._own, self._own.batch
        assert batch is not None
        count = tensors.logprobs.shape[1] - 1
        picked = tokens[:, 0].long().clamp(min=0)
        made = own.gather_logprobs(own.compute_logprobs(raw), count, picked)
        if count:
            made = with_rewards(made, rewards, batch.reports, own.vocab_size)
        mask = torch.tensor([i in rows for i in range(len(raw))], device=raw.device)
        wide = mask.repeat_interleave(2)
        parts = []
        for old, new in zip(tensors[:3], made[:3], strict=True):
            new = new.repeat_interleave(2, 0).to(old.dtype)
            parts.append(torch.where(wide.view(-1, *[1] * (old.dim() - 1)), new, old))
        return LogprobsTensors(*parts)

    def _choose(
        self,
        logits: Tensor,
        channel: Tensor,
        firsts: Sequence[int],
        counts: Sequence[int],
        drafts: Tensor,
        metadata: Any,
    ) -> dict[int, tuple[int, float, int]]:
        """Token, reward and row of the winner of each request whose candidates are here."""
        runner, own = self._runner[0], self._own
        batch = own.batch
        assert batch is not None
        ready, at = {}, 0
        for i, (name, n) in enumerate(zip(runner.input_batch.req_ids, counts, strict=True)):
            tokens = drafts[at : at + n].long()
            if batch.requests[i].by_candidates and self._is_whole(name, tokens.tolist()):
                ready[i] = tokens
            at += n
        if not ready:
            return {}
        model = runner.model
        processed = own.apply_logits_processors(logits[list(firsts)].clone(), metadata, False)
        open_gate = entropy(processed) >= batch.gate
        model.channel_rows = channel
        signals, found = SignalRows(model), {}
        for i, tokens in ready.items():
            rows = torch.arange(len(tokens), device=tokens.device) + firsts[i] + 1
            request = batch.requests[i]
            values = {
                name: _of(signals[name], firsts[i], rows, tokens)
                for name in {request.reported, *request.uses}
            }
            scores = processed[i, tokens].double()
            if open_gate[i]:
                for name in request.uses:
                    scores = scores + request.weights.get(name, 0.0) * values[name].double()
                enough = torch.ones_like(tokens, dtype=torch.bool)
                for name, least in request.guidance.minimum.items():
                    enough &= values[name] >= least
                if enough.any():
                    scores = scores.masked_fill(~enough, -torch.inf)
            winner = self._pick(i, scores, metadata)
            reward = float(values[request.reported][winner])
            found[i] = (int(tokens[winner]), reward, int(rows[winner]))
        return found

    def _is_whole(self, name: str, tokens: list[int]) -> bool:
        """Whether the candidates that were proposed are all here.

        vLLM leaves some out where a step has no room for them, and pads what comes back from a
        preemption with drafts that are none: then the request waits for another step. At the end of
        the context the last candidates are cut off for good.
        """
        runner, wanted = self._runner[0], self._own.proposed.get(name, [])
        if tokens == wanted:
            return bool(tokens)
        request = runner.requests[name]
        is_end = request.num_tokens + len(wanted) >= runner.max_model_len
        return bool(tokens) and is_end and tokens == wanted[: len(tokens)]

    def _pick(self, index: int, scores: Tensor, metadata: Any) -> int:
        temperature = metadata.temperature
        if temperature is None or float(temperature[index]) < 1e-5:
            return int(scores.argmax())
        warm = (scores / temperature[index].double()).float()[None]
        generator = metadata.generators.get(index)
        generators = {} if generator is None else {0: generator}
        drawn, _ = self._own.topk_topp_sampler(warm, generators, None, None)
        return int(drawn[0])


def _of(values: Tensor, first: int, rows: Tensor, tokens: Tensor) -> Tensor:
    """A signal of candidates ``[k]``: of their own rows, or of the row before them."""
    return values[rows, 0] if values.shape[-1] == 1 else values[first, tokens]


class Proposer:
    """What ``--speculative-config`` names: its drafts are the candidates that were found."""

    def __init__(self, vllm_config: Any) -> None:
        self._model: Any = None

    def load_model(self, model: Any, *args: Any, **kwargs: Any) -> None:
        """Called by the runner."""
        self._model = model

    def propose(self, sampled_token_ids: list[list[int]], *args: Any, **kw: Any) -> list[list[int]]:
        """The candidates of each request."""
        drafts: list[list[int]] = self._model.otter_sampler[0].propose()
        return drafts


class CandidateAttention:
    """Lets every attention of a runner's model run by the plan of the step.

    Args:
        runner: vLLM's; its forward is wrapped.
    """

    def __init__(self, runner: Any) -> None:
        self._runner, self._forward = runner, runner._model_forward
        #: By layer; None where the step has no candidates.
        self._plan: dict[str, list[Call]] | None = None
        self._scheduled: dict[str, list[int]] = {}
        for module in runner.model.modules():
            if isinstance(module, Attention):
                module.forward = functools.partial(self._attend, module, module.forward)
        runner._model_forward = self.forward

    def begin(self, scheduled: dict[str, list[int]]) -> None:
        """A step begins, with these drafts by request."""
        self._scheduled = scheduled

    def forward(self, input_ids: Any = None, positions: Any = None, *args: Any, **kw: Any) -> Any:
        """The runner's, with candidates at the position of the first of them."""
        self._plan, positions = self._planned(positions)
        try:
            return self._forward(input_ids, positions, *args, **kw)
        finally:
            self._plan = None

    def _attend(
        self, layer: Any, forward: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, **kw: Any
    ) -> Tensor:
        if self._plan is None:
            return forward(q, k, v, **kw)
        out = torch.empty_like(q)
        context = get_forward_context()
        for rows, metadata, slots in self._plan[layer.layer_name]:
            own = copy.copy(context)
            own.attn_metadata = {layer.layer_name: metadata}
            own.slot_mapping = {layer.layer_name: slots}
            with override_forward_context(own):
                parts = (part[rows].contiguous() for part in (q, k, v))
                out[rows] = forward(*parts, **kw)
        return out

    def _planned(self, positions: Tensor) -> tuple[dict[str, list[Call]] | None, Tensor]:
        runner = self._runner
        batch = runner.sampler.current_batch() if runner.input_batch.req_ids else None
        if batch is None:
            return None, positions
        names = zip(runner.input_batch.req_ids, batch.requests, strict=True)
        counts = [
            len(self._scheduled.get(name, ())) if request.by_candidates else 0
            for name, request in names
        ]
        if not any(counts):
            return None, positions
        context = get_forward_context()
        plan: dict[str, list[Call]] = {}
        moved = positions.clone()
        for groups in runner.attn_groups:
            for group in groups:
                name = group.layer_names[0]
                calls = _calls(
                    group.get_metadata_builder(),
                    context.attn_metadata[name],
                    context.slot_mapping[name],
                    counts,
                    positions,
                    moved,
                )
                plan.update(dict.fromkeys(group.layer_names, calls))
        return plan, moved


def _calls(
    builder: Any, metadata: Any, slots: Tensor, counts: list[int], old: Tensor, new: Tensor
) -> list[Call]:
    """The calls of a group of layers: the rows before candidates, then a rank of them each.

    Args:
        builder: Makes the backend's metadata.
        metadata: Of the step as vLLM sees it.
        slots: ``[T]`` of the cache.
        counts: Candidates of each request.
        old: Positions ``[T]``.
        new: Where those of candidates are written.
    """
    n = len(counts)
    starts = metadata.query_start_loc[: n + 1].tolist()
    lengths = metadata.seq_lens[:n].tolist()
    main: list[int] = []
    fed: list[int] = []
    seen: list[int] = []
    ranks: list[tuple[list[int], list[int], list[int]]] = [([], [], []) for _ in range(max(counts))]
    for i, count in enumerate(counts):
        end = starts[i + 1] - count
        main += range(starts[i], end)
        fed.append(end - starts[i])
        seen.append(lengths[i] - count)
        for rank in range(count):
            rows, requests, shared = ranks[rank]
            rows.append(end + rank)
            requests.append(i)
            shared.append(end)  # the row whose slot and position all have
            new[end + rank] = old[end]
    table = metadata.block_table
    calls = [_call(builder, main, fed, seen, table[:n], slots[main])]
    for rows, requests, shared in ranks:
        lengths_of = [seen[i] + 1 for i in requests]
        calls.append(
            _call(builder, rows, [1] * len(rows), lengths_of, table[requests], slots[shared])
        )
    return calls


def _call(
    builder: Any, rows: list[int], fed: list[int], seen: list[int], table: Tensor, slots: Tensor
) -> Call:
    device = slots.device
    starts = torch.tensor([0, *fed]).cumsum(0).to(torch.int32)
    lengths = torch.tensor(seen, dtype=torch.int32)
    common = CommonAttentionMetadata(
        query_start_loc=starts.to(device),
        query_start_loc_cpu=starts,
        seq_lens=lengths.to(device),
        num_reqs=len(fed),
        num_actual_tokens=len(rows),
        max_query_len=max(fed),
        max_seq_len=int(lengths.max()),
        block_table_tensor=table.contiguous(),
        slot_mapping=slots.contiguous(),
        causal=True,
    )
    return torch.tensor(rows, device=device), builder.build(0, common), slots.contiguous()


def install(runner: Any) -> CandidateAttention:
    """Let a runner score candidates; its sampler is a `CandidateSampler` already."""
    runner.rejection_sampler = CandidateChooser(runner, runner.sampler)
    runner.model.otter_sampler = (runner.sampler,)  # no submodule; for the proposer
    return CandidateAttention(runner)
