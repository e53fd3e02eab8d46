"""The runtime: drive a built engine with reward-guided decoding.

It needs numpy, tokenizers and one engine library; never torch or onnx.
"""
