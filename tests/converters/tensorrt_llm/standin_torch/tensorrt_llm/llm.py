"""``LLM`` over registered models: one generated token per request, without a cache."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

from tensorrt_llm._torch.attention_backend.interface import AttentionMetadata
from tensorrt_llm._torch.models.modeling_utils import MODEL_CLASS_MAPPING
from tensorrt_llm.llmapi import KvCacheConfig
from tensorrt_llm.ranks import Mapping, on_all


@dataclasses.dataclass
class SamplingParams:
    max_tokens: int = 32
    temperature: float | None = None
    end_id: int | None = None
    detokenize: bool = True
    return_generation_logits: bool = False
    additional_model_outputs: list[str] | None = None


class LLM:
    def __init__(
        self,
        model: str,
        *,
        tensor_parallel_size: int = 1,
        disable_overlap_scheduler: bool = False,
        kv_cache_config: KvCacheConfig | None = None,
    ) -> None:
        directory = Path(model)
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        weights: dict[str, torch.Tensor] = {}
        for file in sorted(directory.glob("*.safetensors")):
            weights |= load_file(file)
        self.tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        self.ranks, self.calls = tensor_parallel_size, []
        (architecture,) = config.architectures

        def start(rank: int) -> Any:
            own = copy.deepcopy(config)
            own.torch_dtype = config.dtype
            settings = SimpleNamespace(
                pretrained_config=own, mapping=Mapping(tensor_parallel_size, rank)
            )
            loaded = MODEL_CLASS_MAPPING[architecture](settings)
            loaded.load_weights(weights, weight_mapper=None)
            # The KV cache is sized from this, so it has to be what the layers have.
            heads = [layer.self_attn.num_key_value_heads for layer in loaded.model.layers]
            found = own.num_key_value_heads
            found = found if isinstance(found, list) else [found] * len(heads)
            assert found == [n * tensor_parallel_size for n in heads]
            # As the cache manager computes the queries of a key/value head.
            fewest = loaded.model.layers[0].self_attn.num_heads * tensor_parallel_size
            assert own.num_attention_heads == fewest
            return loaded

        self.models = on_all(tensor_parallel_size, start)

    def generate(self, inputs: list[list[int]], sampling_params: SamplingParams) -> list[Any]:
        """Greedy; the logits and outputs of the row after each prompt."""
        assert sampling_params.max_tokens == 1 and sampling_params.return_generation_logits
        self.calls.append(len(inputs))
        lengths = torch.tensor([len(i) for i in inputs], dtype=torch.int32)
        ids = torch.tensor([t for i in inputs for t in i], dtype=torch.int32)
        positions = torch.cat([torch.arange(len(i)) for i in inputs])[None].int()
        results = on_all(
            self.ranks,
            lambda rank: self.models[rank].forward(
                attn_metadata=AttentionMetadata(lengths),
                input_ids=ids,
                position_ids=positions,
                inputs_embeds=None,
                return_context_logits=False,
                spec_metadata=None,
                lora_params=None,
            ),
        )
        for other in results[1:]:
            assert all(torch.equal(value, other[name]) for name, value in results[0].items())
        names = sampling_params.additional_model_outputs or []
        return [
            SimpleNamespace(outputs=[_completion(results[0], i, names)]) for i in range(len(inputs))
        ]


def _completion(outputs: dict[str, torch.Tensor], i: int, names: list[str]) -> Any:
    """Shapes as the LLM API gives them: ``[tokens, V]``, and ``[tokens, beams, n]``."""
    assert all(outputs[name].ndim == 2 for name in names)
    return SimpleNamespace(
        generation_logits=outputs["logits"][i : i + 1],
        additional_context_outputs=None,
        additional_generation_outputs={n: outputs[n][i : i + 1].unsqueeze(1) for n in names},
    )
