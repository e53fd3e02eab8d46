"""Lowering passes: one file each, before and after in the docstring; see pipeline.py for the order."""
