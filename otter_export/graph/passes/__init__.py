"""Named lowering passes, one per module."""
