"""A stand-in of what TensorRT-LLM's PyTorch backend (1.3) offers to a model of one's own.

The names, places and signatures that the emitted package uses, computed in plain torch on the CPU;
unknown arguments are errors. It is written from the API's behaviour; no line of it is
TensorRT-LLM's. What it cannot show: kernels, paged caches, CUDA graphs, worker processes.
"""

from tensorrt_llm.llm import LLM, SamplingParams

__version__ = "1.3.0"
__all__ = ["LLM", "SamplingParams"]
