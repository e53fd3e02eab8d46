"""The ONNX graph: base graph, widening (one rule per op), and the passes that lower it.

Needs the extra ``[build]``.
"""
