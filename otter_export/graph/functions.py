"""Model-local ONNX functions of domain ``com.otter``.

Any runtime can run their bodies (they are inlined); a pass or a plugin may put something faster in
their place. ``OtterLinear`` has two overloads: five inputs, and seven with both biases. ONNX
Runtime tells them apart; TensorRT's parser does not, and needs the plugin where a file has both.
"""

from __future__ import annotations

import onnx.parser
import onnx_ir as ir

DOMAIN = "com.otter"
#: Overload of OtterLinear with biases.
BIAS = "bias"

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
    # Weights are [out, in], as they are stored.
    "OtterLinear": """
        OtterLinear (x, x_channel, W, A, B) => (y, y_channel)
        {
            W_t = Transpose <perm = [1, 0]> (W)
            y = MatMul (x, W_t)
            A_t = Transpose <perm = [1, 0]> (A)
            from_base = MatMul (x, A_t)
            B_t = Transpose <perm = [1, 0]> (B)
            from_channel = MatMul (x_channel, B_t)
            y_channel = Add (from_base, from_channel)
        }""",
    f"OtterLinear:{BIAS}": """
        OtterLinear (x, x_channel, W, A, B, b, b_channel) => (y, y_channel)
        {
            W_t = Transpose <perm = [1, 0]> (W)
            from_x = MatMul (x, W_t)
            y = Add (from_x, b)
            A_t = Transpose <perm = [1, 0]> (A)
            from_base = MatMul (x, A_t)
            B_t = Transpose <perm = [1, 0]> (B)
            from_channel = MatMul (x_channel, B_t)
            total = Add (from_base, from_channel)
            y_channel = Add (total, b_channel)
        }""",
}


def register_functions(model: ir.Model) -> None:
    """Add the functions to a model and import their domain."""
    for name, source in _SOURCE.items():
        text = f'<domain: "{DOMAIN}", opset_import: ["" : 24]>\n{source}'
        function = ir.serde.deserialize_function(onnx.parser.parse_function(text))
        function.overload = name.partition(":")[2]
        model.functions[function.identifier()] = function
    model.graph.opset_imports[DOMAIN] = 1


def epsilon_of(norm: ir.Node) -> float:
    """A norm's epsilon."""
    attribute = norm.attributes.get("epsilon")
    # 1e-5 is the operators' default (RMSNormalization-23, LayerNormalization-17).
    return 1e-5 if attribute is None else attribute.as_float()
