"""What all commands share: how they are listed, and how an error becomes one line."""

import contextlib
import os
import pathlib
import sys

import click

from kmed.errors import KmedError, suggest

PATH = click.Path(path_type=pathlib.Path)


class Commands(click.Group):
    """A group that lists its commands in the order of work, and names the nearest one to a misspelt one."""

    def list_commands(self, ctx):
        """Returns the commands' names in the order they were added."""
        return list(self.commands)

    def resolve_command(self, ctx, args):
        """Finds a command, or says which one is near."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            ctx.fail(f"There is no command {args[0]!r}.{suggest(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


@contextlib.contextmanager
def one_line_errors(go_on: str = ""):
    """Turns kmed's errors, a full disk and Ctrl-C into one line and an exit code.

    Args:
      go_on: the command that goes on with what Ctrl-C has interrupted; "": none does.
    """
    try:
        yield
    except KmedError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # whoever read the output has had enough, as `head` does
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - or Python complains when it flushes at its end
        sys.exit(1)
    except OSError as error:  # a full disk or a forbidden folder, met outside kmed's own writing
        click.echo(f"Error: {error.strerror or error}: {error.filename or 'no file named'}.", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        hint = f" A run that has finished an epoch goes on by: {go_on}" if go_on else ""
        click.echo(f"Interrupted.{hint}", err=True)
        sys.exit(130)


def check_table(path, tasks) -> None:
    """Raises RunError where `--append` names a table that cannot take a run's row: before hours of training."""
    if path:
        from kmed.evaluation.result_rows import read_results

        read_results(path, tasks)


def add_row(run, path) -> None:
    """Adds the row of a sweep's run to a table, if there is to be one; where it cannot be, the sweep goes on."""
    if path:
        from kmed.evaluation import result_rows

        try:
            result_rows.append_results([run], path)
        except KmedError as error:
            click.echo(f"Error: {error} The sweep goes on, and its rows are added at its end.", err=True)


def add_rows(runs, path) -> None:
    """Adds the rows of finished runs to a table of results; those it holds are skipped."""
    from kmed.evaluation import result_rows
    from kmed.runs import Run

    added = result_rows.append_results([Run(folder) for folder in runs], path)
    click.echo(f"Added to {path}: {added} of {len(runs)} rows.")
