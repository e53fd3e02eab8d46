"""``value-head``: the value head of TRL and LlamaFactory, ``v_head.summary``: one score a token."""

from __future__ import annotations

from otter_export.base_model import BaseModel
from otter_export.errors import ConfigError
from otter_export.importing.scalar import scalar_head
from otter_export.importing.source import Head, HeadOptions, Source, SourceFormat, check_shape

WEIGHT, BIAS = "v_head.summary.weight", "v_head.summary.bias"


class ValueHead(SourceFormat):
    """``summary``: a linear layer from the final state to one number; dropout is for training."""

    name = "value-head"
    expects = f"{WEIGHT} in model.safetensors or value_head.safetensors (TRL, LlamaFactory)"

    def fits(self, source: Source) -> bool:
        """By the head's weight."""
        return WEIGHT in source.tensors

    def head(self, source: Source, base: BaseModel, options: HeadOptions) -> Head:
        """See `SourceFormat.head`."""
        if options.label is not None or options.probability:
            raise ConfigError("a value head has no labels; leave out --label and --probability")
        check_shape(source, WEIGHT, (1, base.dimensions.hidden_size))
        names, bias = {WEIGHT}, 0.0
        if BIAS in source.tensors:
            check_shape(source, BIAS, (1,))
            names.add(BIAS)
            bias = float(source.read(BIAS)[0])
        row = source.read(WEIGHT)[0]
        return scalar_head(row, bias, frozenset(names), options)


VALUE_HEAD = ValueHead()
