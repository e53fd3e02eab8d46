"""An Otter model for TensorRT-LLM's PyTorch backend: importing this package registers it.

    trtllm-serve DIR --custom_module_dirs DIR/otter_trtllm

In a program of one's own, with DIR on the path: ``import otter_trtllm`` before ``tensorrt_llm.LLM``
is made, at the top of the main module, so that its worker processes import it too.
"""

import os

# TensorRT-LLM reports its use to its vendor, unless this is set before it is asked to.
os.environ.setdefault("TRTLLM_NO_USAGE_STATS", "1")

from otter_trtllm.model import OtterForCausalLM

__all__ = ["OtterForCausalLM"]
