"""The fused projection, one kernel per engine."""
