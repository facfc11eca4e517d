"""The command line: it knows no logic, only how arguments are read and results printed."""

from kmed.cli.main import main

__all__ = ["main"]
