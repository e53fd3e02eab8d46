"""Model-local ONNX functions of domain ``com.otter``.

Any runtime can run their bodies (they are inlined); a pass or a plugin may put something faster in
their place.
"""

from __future__ import annotations

import onnx.parser
import onnx_ir as ir

DOMAIN = "com.otter"

# Statistics are taken in float32 whatever the type of x, as in the frameworks' own norms.
_SOURCE = {
    "InverseRms": """
        InverseRms <epsilon: float> (x) => (r)
        {
            wide = Cast <to = 1> (x)
            square = Mul (wide, wide)
            axes = Constant <value = int64[1] {-1}> ()
            mean = ReduceMean <keepdims = 1> (square, axes)
            eps = Constant <value_float: float = @epsilon> ()
            shifted = Add (mean, eps)
            root = Sqrt (shifted)
            r = Reciprocal (root)
        }""",
    "MeanInverseStd": """
        MeanInverseStd <epsilon: float> (x) => (mean, r)
        {
            wide = Cast <to = 1> (x)
            axes = Constant <value = int64[1] {-1}> ()
            mean = ReduceMean <keepdims = 1> (wide, axes)
            centred = Sub (wide, mean)
            square = Mul (centred, centred)
            variance = ReduceMean <keepdims = 1> (square, axes)
            eps = Constant <value_float: float = @epsilon> ()
            shifted = Add (variance, eps)
            root = Sqrt (shifted)
            r = Reciprocal (root)
        }""",
}


def register_functions(model: ir.Model) -> None:
    """Add the functions to a model and import their domain."""
    for source in _SOURCE.values():
        text = f'<domain: "{DOMAIN}", opset_import: ["" : 24]>\n{source}'
        function = ir.serde.deserialize_function(onnx.parser.parse_function(text))
        model.functions[function.identifier()] = function
    model.graph.opset_imports[DOMAIN] = 1
