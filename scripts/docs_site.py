"""Hooks for mkdocs.yml: they add files outside docs/ to the site, and make griffe read this project's docstrings.

MkDocs calls the functions named on_*; mkdocstrings loads the class HouseDocstrings.
"""

import pathlib
import re
import textwrap

import griffe
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Pages and files that docs/ links to as ../NAME; on the site they are beside the pages.
OUTSIDE = ("CONTRIBUTING.md", "CHANGELOG.md", "NOTICE", "LICENSE", "configs/*.yaml", "results/*.csv")


def on_files(files, config):
    """Adds the files of OUTSIDE to the site."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, **_):
    """Returns the page's text with links that fit the site instead of the repository."""
    if page.file.src_uri in OUTSIDE:
        return re.sub(r"\]\(docs/", "](", markdown)
    return re.sub(r"\]\(\.\./", "](", markdown)


class HouseDocstrings(griffe.Extension):
    """Rewrites the sections of this project's docstrings in Google's style, which griffe reads.

    Here a section may begin on the line of its heading ("Raises: DataError: no such file. RunError: ...") and an
    example is called "Example:".
    """

    def on_object(self, *, obj, **_):
        """Rewrites the docstring of a function, class, module or attribute."""
        if obj.docstring:
            obj.docstring.value = to_google(obj.docstring.value)


def to_google(text: str) -> str:
    """Returns a docstring in Google's style.

    Args:
      text: a cleaned docstring, its lines not indented.
    """
    lines, made = text.split("\n"), []
    while lines:
        line = lines.pop(0)
        heading = re.match(r"(Returns|Yields|Raises|Example|Examples):[ \t]*(.*)", line)
        if heading is None:
            made.append(line)
            continue
        body = [heading[2]] if heading[2] else []
        while lines and (lines[0].startswith("  ") or (not lines[0] and lines[1:2] and lines[1].startswith("  "))):
            body.append(lines.pop(0))
        made += _section(heading[1], body)
    return "\n".join(made)


def _section(name: str, body: list[str]) -> list[str]:
    """Returns the lines of a section, with an empty line before and after it."""
    if name.startswith("Example"):
        name, inside = "Examples", textwrap.dedent("\n".join(body)).split("\n")
    elif name == "Raises":
        # One error per line; an error begins after a full stop.
        inside = re.split(r"(?:(?<=\.)|(?<=;)|^) *(?=[A-Z]\w+: )", " ".join(line.strip() for line in body))
        inside = [error.removesuffix(";").strip() for error in inside if error.strip()]
    else:
        inside = [": " + " ".join(line.strip() for line in body)]
    return ["", f"{name}:", *(f"    {line}" for line in inside), ""]
