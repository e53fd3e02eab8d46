"""Builder ``tensorrt-rtx``: TensorRT for RTX, ahead of time; needs no GPU."""

from __future__ import annotations

from otter_export.converters.tensorrt_native_builder import NativeBuilder

#: Compute capabilities by NVIDIA's support matrix for 1.7. There is no 9.0.
BUILDER = NativeBuilder(
    name="tensorrt-rtx",
    module="tensorrt_rtx",
    accepted=((1, 7), (2,)),
    accepted_text="1.7 or later, below 2",
    install="pip install 'otter-export[trt]'",
    needs_gpu=False,
    capabilities=("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"),
    # What an engine runs on when none is named; Turing has to be asked for.
    default_capabilities=("8.0", "8.6", "8.9", "12.0"),
    advice="for other GPUs (an H100 is 9.0) build on that machine with --builder tensorrt",
)
