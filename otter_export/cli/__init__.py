"""The command line; `main` is the console script, one module holds one command."""

from otter_export.cli.main import main

__all__ = ["main"]
