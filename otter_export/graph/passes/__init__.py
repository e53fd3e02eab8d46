"""Lowering passes: one file each, before and after in the docstring; pipeline.py has the order."""
