"""The command line: it reads arguments and prints results; the work is done by the library."""

from kmed.cli.main import main

__all__ = ["main"]
