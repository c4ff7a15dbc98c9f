"""The command line: parse, call, print."""

from cellray.cli.app import main

__all__ = ["main"]
