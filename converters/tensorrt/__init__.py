"""Target ``trt``: TensorRT, TensorRT-RTX or TensorRT-LLM (docs/tensorrt.md)."""
