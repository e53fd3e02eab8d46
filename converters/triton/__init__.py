"""A model repository for Triton Inference Server (docs/triton.md)."""
