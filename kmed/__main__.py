"""Makes `python -m kmed` the same as `kmed`."""

from kmed.cli import main

main(prog_name="kmed")
