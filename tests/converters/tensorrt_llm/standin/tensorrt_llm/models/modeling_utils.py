"""Configurations, the list of decoder layers, and the base of decoder models."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tensorrt_llm.layers import Attention
from tensorrt_llm.models import MODEL_MAP
from tensorrt_llm.module import Module, ModuleList


class Mapping:
    def __init__(self, world_size: int, tp_size: int, pp_size: int, rank: int = 0) -> None:
        assert world_size == tp_size * pp_size and pp_size == 1
        self.world_size, self.tp_size, self.rank = world_size, tp_size, rank
        self.tp_group = list(range(tp_size))

    @property
    def tp_rank(self) -> int:
        return self.rank

    def pp_layers(self, count: int) -> list[int]:
        return list(range(count))


class PretrainedConfig:
    def __init__(
        self,
        *,
        architecture: str,
        dtype: str,
        hidden_size: int,
        num_hidden_layers: int,
        num_attention_heads: int,
        vocab_size: int,
        hidden_act: str,
        logits_dtype: str,
        norm_epsilon: float,
        position_embedding_type: str,
        max_position_embeddings: int,
        num_key_value_heads: int,
        intermediate_size: int,
        mapping: dict[str, int],
        quantization: dict[str, Any],
        use_parallel_embedding: bool,
        head_size: int,
        **further: Any,
    ) -> None:
        given = {k: v for k, v in locals().items() if k not in ("self", "further", "__class__")}
        self.__dict__.update(given, **further)
        self.mapping = Mapping(**mapping)
        assert set(quantization) <= {"quant_algo", "kv_cache_quant_algo"}
        assert not any(quantization.values())
        self.quant_mode, self.kv_dtype = None, dtype

    @classmethod
    def from_json_file(cls, path: Path) -> Any:
        data = json.loads(Path(path).read_text())
        return MODEL_MAP[data["architecture"]].config_class(**data)

    def for_rank(self, rank: int) -> Any:
        config = copy.deepcopy(self)
        config.mapping.rank = rank
        return config


class DecoderLayerList(ModuleList):
    def __init__(self, cls: Any, config: Any) -> None:
        super().__init__([cls(config, i) for i in range(config.num_hidden_layers)])

    def forward(
        self,
        hidden_states: Any,
        use_cache: bool = False,
        attention_mask: Any = None,
        kv_cache_params: Any = None,
        attention_params: Any = None,
        spec_decoding_params: Any = None,
    ) -> Any:
        presents, optional = [], {}
        if spec_decoding_params is not None:
            optional["spec_decoding_params"] = spec_decoding_params
        for layer in self:  # type: ignore[attr-defined]
            hidden_states = layer(
                hidden_states,
                use_cache=use_cache,
                attention_mask=attention_mask,
                kv_cache_params=kv_cache_params,
                attention_params=attention_params,
                **optional,
            )
            if use_cache:
                presents.append(hidden_states[1])
                hidden_states = hidden_states[0]
        return (hidden_states, presents) if use_cache else hidden_states


class DecoderModelForCausalLM(Module):
    def __init__(self, config: Any, transformer: Module, lm_head: Module) -> None:
        super().__init__()
        self.config = config
        self.transformer = transformer
        self.lm_head = lm_head
        Attention.create_attention_const_params(self, config)

    def prepare_attention_inputs(
        self, *, num_kv_heads: int, num_kv_heads_per_layer: list[int] | None = None
    ) -> dict[str, int]:
        """Of the real inputs only how many pools the paged cache has."""
        return {"num_kv_cache_pools": len(set(num_kv_heads_per_layer or [num_kv_heads]))}

    @classmethod
    def from_checkpoint(cls, directory: Path, config: Any) -> Any:
        """Load a rank; a tensor too few or too many is an error, and so are shape and dtype."""
        weights = load_file(Path(directory) / f"rank{config.mapping.rank}.safetensors")
        model = cls(config)
        parameters = dict(model.named_parameters())
        assert set(parameters) == set(weights), set(parameters) ^ set(weights)
        for name, parameter in parameters.items():
            parameter.value = weights[name]
        return model
