"""Limits of what may differ, by what the engine computes in; measured on SmolLM2-135M."""

from __future__ import annotations

from otter_export.evaluation.check import Limit
from otter_export.manifest import EngineManifest


def rounds_activations(manifest: EngineManifest) -> bool:
    """Whether kernels round activations to int8: those of ONNX Runtime do, TensorRT's do not."""
    return manifest.target == "onnx" and manifest.precision in ("int8", "int4")


def has_half_states(manifest: EngineManifest) -> bool:
    """Whether activations are float16, whatever the weights are stored in."""
    is_cuda_form = manifest.precision == "fp16" and manifest.execution_provider == "cuda"
    return is_cuda_form or manifest.target == "trt"


def arithmetic(manifest: EngineManifest) -> Limit:
    """Largest difference over spread between two ways to compute the same from the same weights."""
    if has_half_states(manifest):
        return Limit(2e-2, "float16 states have 11 bits, and errors add up; 0.006 is usual")
    return Limit(1e-4, "float32 sums in another order; 1e-5 is usual")


def logits(manifest: EngineManifest) -> Limit:
    """The same, of an engine as it runs; a mean where its kernels round activations."""
    if rounds_activations(manifest):
        return Limit(0.2, "kernels round activations to int8; 0.06 is usual, a wrong graph gives 1")
    return arithmetic(manifest)


_DIVERGENCE = {
    "fp16": Limit(0.01, "a part of what the model knows; 1e-6 is usual"),
    "int8": Limit(0.05, "a part of what the model knows; 0.002 is usual"),
    "int4": Limit(0.35, "a part of what the model knows; 0.06 is usual, 0.2 in random models"),
}


def divergence(manifest: EngineManifest) -> Limit:
    """KL divergence that storing weights in few bits costs, over that of a uniform guess."""
    return _DIVERGENCE.get(manifest.precision, _DIVERGENCE["int8"])
