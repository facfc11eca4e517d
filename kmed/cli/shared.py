"""What all commands share: how they are listed, and how an error becomes one line."""

import contextlib
import os
import pathlib
import signal
import sys

import click

from kmed.errors import KmedError, suggest
from kmed.formats.registry import FORMATS, describe_quantizations, either
from kmed.progress import make_console_safe
from kmed.runtime import Terminated, interrupted_by_sigterm

PATH = click.Path(path_type=pathlib.Path)
FORMAT = click.option(
    "--format",
    "format",
    default="keras",
    show_default=True,
    metavar="FORMAT",
    help=f"{either(FORMATS)}.",
)
QUANTIZE = click.option("--quantize", default="none", show_default=True, metavar="KIND", help=describe_quantizations())
THREADS = click.option("--threads", type=int, metavar="N", help="How many processor cores to use.  [all]")
DATA = click.option("--data", metavar="PATH", help="Where the run's images are now, if they have moved.")
CLASS_MAP = click.option(
    "--map",
    "class_map",
    metavar="THEIRS=OURS",
    multiple=True,
    help="A class name in DATA and the run's class, or nothing for no class; or a YAML of them. Repeatable.",
)
COPIES = click.option(
    "--copies",
    default="pixels",
    show_default=True,
    metavar="HOW",
    help="How images that the run knows are looked for: pixels, bytes or none.",
)


class Commands(click.Group):
    """A group that lists its commands in the order of work, and suggests the nearest one for a misspelt name."""

    def main(self, *args, **kwargs):
        """Runs a command on a console that takes any text, whatever its encoding is."""
        make_console_safe()
        return super().main(*args, **kwargs)

    def list_commands(self, ctx):
        """Returns the names of the commands in the order they were added."""
        return list(self.commands)

    def resolve_command(self, ctx, args):
        """Finds a command, or fails and suggests the nearest one."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            ctx.fail(f"There is no command {args[0]!r}.{suggest(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


@contextlib.contextmanager
def one_line_errors(continue_with: str = ""):
    """Turns kmed's errors, a full disk, Ctrl-C and SIGTERM into one line and an exit code.

    Args:
      continue_with: the command that continues what was interrupted; "": there is none.
    """
    try:
        with interrupted_by_sigterm():
            yield
    except KmedError as error:
        click.echo(f"Error: {error}", err=True)
        _exit(error.exit_code)
    except BrokenPipeError:  # the reader of the output has stopped, as `head` does
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - or Python complains when it flushes at exit
        sys.exit(1)
    except OSError as error:  # a full disk or a folder without permission, outside kmed's own writing
        click.echo(f"Error: {error.strerror or error}: {error.filename or 'no file named'}.", err=True)
        sys.exit(1)
    except KeyboardInterrupt as stop:
        hint = f" To continue a run that has finished an epoch: {continue_with}" if continue_with else ""
        click.echo(f"Interrupted.{hint}", err=True)
        _exit(128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT))


def _exit(code: int):
    """Ends the process; if it trains together with others, without waiting for them."""
    if training := sys.modules.get("kmed.training.processes"):
        training.end(code)
    sys.exit(code)


def open_finished(run_folder):
    """Returns the Run of a folder with a trained model; mistakes are reported before the backend is loaded."""
    from kmed.runs import finished_run
    from kmed.runtime import load_backend

    run = finished_run(run_folder)
    load_backend()
    return run


def open_judged(run_folder, *, unlabelled: bool = False):
    """Returns the Run of a folder with scores, and loads the backend; its weights may be gone.

    `unlabelled` says whether it may also be a run that was recalibrated without labels, which has none.
    """
    from kmed.runs import judged_run
    from kmed.runtime import load_backend

    run = judged_run(run_folder, unlabelled=unlabelled)
    load_backend()
    return run


def print_report(run) -> None:
    """Prints where a run's page is, if it could be drawn."""
    if run.report.exists():
        click.echo(f"Report: {run.report}")


def print_comparison(files) -> None:
    """Prints the table of a comparison, and where its files are."""
    table = next(file for file in files if file.name == "comparison.md")
    click.echo(table.read_text(encoding="utf-8"))
    for file in files:
        click.echo(f"Made: {file}")
