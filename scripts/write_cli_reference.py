"""Writes docs/cli-reference.md from the commands' help and from the definitions of the settings.

python scripts/write_cli_reference.py            # writes it
python scripts/write_cli_reference.py --check    # only says whether it is up to date
"""

import ast
import pathlib
import sys
import textwrap

import click

from kmed.cli.main import main as kmed
from kmed.config import Config, Section, setting_names
from kmed.files import write_text

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "cli-reference.md"
REFRESH = "python scripts/write_cli_reference.py"
WIDTH = 88  # columns of the help, so that it needs no scrolling on a desktop


@click.command(help=__doc__.split("\n")[0])
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if the page is out of date.")
def main(check):
    """Writes the page, or compares it."""
    text = reference()
    if not check:
        write_text(PAGE, text)
    elif not is_fresh(text):
        raise click.ClickException(f"{PAGE.relative_to(ROOT)} is out of date. Refresh it with: {REFRESH}")


def is_fresh(text: str) -> bool:
    """Returns whether the page has the words of `text`; line breaks depend on click's version and are ignored."""
    return PAGE.exists() and PAGE.read_text(encoding="utf-8").split() == text.split()


def reference() -> str:
    """Returns the whole page."""
    parts = [
        f"<!-- Written by `{REFRESH}`; edit the commands' docstrings and kmed/config.py instead. -->",
        "# CLI reference",
        fill(
            "What `--help` says of every command, and every setting that `--config` and `--set` can change. "
            "`python -m kmed` is the same as `kmed`."
        ),
        help_block(("kmed",), kmed),
    ]
    for path, command in commands(kmed):
        parts += [f"## {' '.join(path)}", help_block(path, command)]
    return "\n\n".join([*parts, *settings()]) + "\n"


def commands(group: click.Group, prefix=("kmed",)):
    """Yields (path, command) of every command below a group; groups come before their commands."""
    for name in group.list_commands(click.Context(group)):
        command = group.commands[name]
        yield (*prefix, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*prefix, name))


def help_block(path: tuple[str, ...], command: click.Command) -> str:
    """Returns a command's help as a fenced block."""
    context = None
    for name in path[:-1]:  # so that the usage line names the whole command
        context = click.Context(kmed, info_name=name, parent=context, help_option_names=["-h", "--help"])
    context = click.Context(
        command,
        info_name=path[-1],
        parent=context,
        help_option_names=["-h", "--help"],
        terminal_width=WIDTH,
        max_content_width=WIDTH,
    )
    return f"```text\n{command.get_help(context).rstrip()}\n```"


def settings() -> list[str]:
    """Returns the chapter on the settings, with one table per section."""
    comments = setting_comments()
    parts = [
        "## Settings",
        fill(
            "A YAML file has one section per table below; on the command line a setting is `--set section.key=value`, "
            "with the value written as in YAML. An empty default means none."
        ),
    ]
    sections: dict[str, list[str]] = {}
    for name in setting_names():
        sections.setdefault(name.rpartition(".")[0], []).append(name)
    for section, names in sections.items():
        about = _section_class(section).__doc__
        parts.append(f"### {section or 'Top level'}")
        parts.append(about)
        rows = [f"| `{name}` | {_default(name)} | {_escape(comments.get(name, ''))} |" for name in names]
        parts.append("\n".join(["| setting | default | meaning |", "|---|---|---|", *rows]))
    return parts


def fill(text: str) -> str:
    """Returns a paragraph in lines of at most 118 characters."""
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)


def setting_comments() -> dict[str, str]:
    """Returns {name: legal values and comment beside or above the setting in kmed/config.py}."""
    source = (ROOT / "kmed" / "config.py").read_text(encoding="utf-8")
    lines, found = source.split("\n"), {}
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    for name in setting_names():
        section, _, key = name.rpartition(".")
        for node in classes[_section_class(section).__name__].body:
            if isinstance(node, ast.AnnAssign) and node.target.id == key:
                beside = lines[node.end_lineno - 1][node.end_col_offset :].partition("#")[2].strip()
                above = lines[node.lineno - 2].strip()
                comment = beside or (above[1:].strip() if above.startswith("#") else "")
                found[name] = "; ".join(filter(None, [_choices(node.annotation), comment]))
    return found


def _choices(annotation: ast.expr) -> str:
    """Returns the words of a Literal annotation, such as "`pad`, `crop` or `stretch`"; "" for another type."""
    for node in ast.walk(annotation):
        if isinstance(node, ast.Subscript) and getattr(node.value, "id", "") == "Literal":
            values = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            words = [f"`{value.value}`" for value in values]
            return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
    return ""


def _section_class(section: str) -> type[Section]:
    return type(getattr(Config(), section)) if section else Config


def _default(name: str) -> str:
    value = Config()
    for part in name.split("."):
        value = getattr(value, part)
    if value is None or value == {}:
        return ""
    if isinstance(value, tuple):
        value = "x".join(map(str, value))
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
