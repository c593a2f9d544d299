"""The command line."""

from mcgen.cli.main import main

__all__ = ["main"]
