"""The ONNX graph: the base graph, its widening, and the passes that lower it for a target."""
