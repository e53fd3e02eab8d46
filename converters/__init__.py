"""Targets: one module turns a widened graph into the engine of one runtime."""
