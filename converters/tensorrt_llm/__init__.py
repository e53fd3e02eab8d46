"""Both routes to TensorRT-LLM: its engines, and its PyTorch backend (docs/tensorrt_llm.md)."""
