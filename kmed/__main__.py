"""`python -m kmed` is `kmed`."""

from kmed.cli import main

main(prog_name="kmed")
