"""Widening rules, one file per kind of op; a new rule is a file here and a line below."""

from __future__ import annotations

from otter_export.graph.rule import Rule
from otter_export.registry import Registry

RULES: Registry[Rule] = Registry("widening rule", expected=Rule, extra="build")
for _op in ("Gather", "MatMul", "Add", "Mul", "RotaryEmbedding", "Attention", "Reshape"):
    RULES.register(_op, f"otter_export.graph.rules.{_op.lower()}:RULE")
RULES.register("RMSNormalization", "otter_export.graph.rules.norm:RMS_RULE")
RULES.register("LayerNormalization", "otter_export.graph.rules.norm:LAYER_RULE")
for _op in ("Sigmoid", "Gelu", "Relu", "Tanh", "Swish", "Erf", "Identity"):
    RULES.register(_op, f"otter_export.graph.rules.elementwise:{_op.upper()}")
