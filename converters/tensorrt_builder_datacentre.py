"""Builder ``tensorrt``: TensorRT itself, on the kind of GPU that the engine is for."""

from __future__ import annotations

from otter_export.converters.tensorrt_native_builder import NativeBuilder

#: KVCacheUpdate and Attention with a bool mask came with 10.15.
BUILDER = NativeBuilder(
    name="tensorrt",
    module="tensorrt",
    accepted=((10, 15), (12,)),
    accepted_text="10.15 or later, below 12",
    install="pip install 'tensorrt>=10.15,<12', on a machine with the engine's own kind of GPU",
    needs_gpu=True,
    capabilities=(),
    default_capabilities=(),
    advice="it builds for the GPU at hand; ahead of time, for others: --builder tensorrt-rtx",
)
