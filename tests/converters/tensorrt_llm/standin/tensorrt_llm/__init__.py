"""A stand-in of TensorRT-LLM's model definition API that computes, with torch, instead of tracing.

It has what the emitted model file imports, with the signatures of 1.0 to 1.2 (unknown arguments are
errors), and the checks that a strongly typed network makes: operands of one dtype, widths that fit.
It is written from the API's behaviour; no line of it is TensorRT-LLM's. What it cannot show: that
TensorRT builds the network, and what the real kernels compute.
"""

__version__ = "1.2.1"
