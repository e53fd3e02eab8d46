"""Converters: one target a file. Installed as ``otter_export.converters``."""
