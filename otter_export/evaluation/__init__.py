"""Measuring: parity of an engine with its checkpoint, text metrics, ways to decode, benchmarks."""
