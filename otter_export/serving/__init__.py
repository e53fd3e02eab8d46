"""Serving: what a model server needs around the scheduler, and the model of Triton itself.

It imports what `otter_export.runtime` needs, and travels with a model; see converters/triton.
"""
