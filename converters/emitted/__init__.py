"""Files that are copied, as they are, beside a built model: none is imported by otter-export.

They import TensorRT-LLM, and run where that is installed.
"""
