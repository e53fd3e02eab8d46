"""Measuring: parity of an engine with its checkpoint, text metrics, benchmarks."""
