"""Runs an emitted engine model over the stand-in: all ranks, prompts and tree steps."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import torch

from otter_export.converters.tensorrt_llm.emitted.tree_inputs import tree_inputs
from tests.converters.tensorrt_llm.rank_threads import in_threads

Outputs = dict[str, torch.Tensor]


@dataclasses.dataclass
class Runner:
    """An engine directory's model, on all its ranks, with a cache per rank and sequence."""

    models: list[Any]
    config: Any

    @classmethod
    def load(cls, directory: Path) -> Runner:
        """Import the model file as trtllm-build does, and load every rank's weights."""
        path = directory / "otter_engine_model.py"
        module = SourceFileLoader("models", str(path)).load_module()
        utilities = importlib.import_module("tensorrt_llm.models.modeling_utils")
        config = utilities.PretrainedConfig.from_json_file(directory / "checkpoint/config.json")
        ranks = range(config.mapping.world_size)
        models = [
            module.OtterForCausalLM.from_checkpoint(directory / "checkpoint", config.for_rank(r))
            for r in ranks
        ]
        return cls(models, config)

    def new_cache(self, batch: int) -> list[list[list[Any]]]:
        """Empty rows, by rank, layer and sequence."""
        dtype, ranks = self.models[0].lm_head.weight.dtype, len(self.models)
        # As TensorRT-LLM's runtime sizes its pools: by the configuration, not by the layers.
        rows = [
            torch.zeros(0, heads // ranks, self.config.head_size, dtype=dtype)
            for heads in self.config.num_kv_heads_per_layer
        ]
        return [[[(empty, empty)] * batch for empty in rows] for _ in self.models]

    def prompts(
        self, prompts: Sequence[Sequence[int]], cache: list[Any], *, all_rows: bool = True
    ) -> Outputs:
        """Context phase: feed whole prompts, without padding."""
        lengths = [len(p) for p in prompts]
        tokens = torch.tensor([t for p in prompts for t in p], dtype=torch.int32)
        last = torch.tensor(lengths).cumsum(0).int()
        return self._run(tokens, None if all_rows else last, lengths, [0] * len(prompts), cache)

    def tree(
        self,
        candidates: Sequence[Sequence[int]],
        roots: Sequence[int],
        past: Sequence[int],
        cache: list[Any],
    ) -> Outputs:
        """Generation phase: one step of roots and their candidates, after ``past`` tokens each."""
        inputs = {n: torch.from_numpy(v) for n, v in tree_inputs(candidates, roots).items()}
        params = importlib.import_module("tensorrt_llm.layers").SpecDecodingParams(
            inputs["spec_decoding_generation_lengths"],
            inputs["spec_decoding_position_offsets"],
            inputs["spec_decoding_packed_mask"],
        )
        lengths = inputs["spec_decoding_generation_lengths"].tolist()
        rows = inputs["last_token_ids"]
        return self._run(inputs["input_ids"], rows, lengths, list(past), cache, tree=params)

    def _run(
        self,
        tokens: torch.Tensor,
        last: Any,
        lengths: list[int],
        past: list[int],
        cache: list[Any],
        tree: Any = None,
    ) -> Outputs:
        common = importlib.import_module("tensorrt_llm._common")
        layers = importlib.import_module("tensorrt_llm.layers")
        tensor = importlib.import_module("tensorrt_llm.functional").Tensor
        world = common.World(len(self.models))

        def run(rank: int) -> Outputs:
            network = common.Network(rank, world)
            common.set_network(network)
            self.models[rank](
                input_ids=tensor(tokens),
                position_ids=tensor(torch.zeros_like(tokens)),
                use_cache=True,
                last_token_ids=None if last is None else tensor(last),
                attention_mask=None,
                kv_cache_params=layers.KeyValueCacheParams(cache[rank], past),
                attention_params=layers.AttentionParams(
                    lengths, [0 if tree is None else 1] * len(lengths)
                ),
                **({} if tree is None else {"spec_decoding_params": tree}),
            )
            outputs: Outputs = network.outputs
            return outputs

        results = in_threads(run, len(self.models), world.abort)
        for other in results[1:]:
            for name, value in results[0].items():
                assert torch.equal(value, other[name]), f"ranks differ in {name}"
        self.all_reduces = world.all_reduces
        return results[0]
