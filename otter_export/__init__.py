"""otter-export: deploy Otter models, a base LLM and a reward from the same forward pass."""

__version__ = "0.1.0"
