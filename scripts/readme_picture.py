"""Draws docs/images/demo.png from a finished run on the demo data: pictures, loss curves, confusion matrix.

python scripts/readme_picture.py saved_models/latest docs/images/demo.png
"""

import pathlib
import tempfile

import click
from PIL import Image

from kmed.data.readers.load import load_table
from kmed.data.show import show
from kmed.evaluation.inference import run_table
from kmed.files import replacing
from kmed.runs import finished_run

WIDTH = 1500  # pixels


@click.command()
@click.argument("run_folder", metavar="RUN")
@click.argument("out", type=click.Path(path_type=pathlib.Path))
def main(run_folder, out):
    """Puts the contact sheet and the figures of RUN into one image."""
    run = finished_run(run_folder)
    table = run_table(run, load_table("data/demo"))
    with tempfile.TemporaryDirectory() as folder:
        sheet = next(path for path in show(table, pathlib.Path(folder)) if path.name == "contact_sheet.png")
        paths = [sheet, run.figures / "history.png", run.figures / "confusion_test.png"]
        sheet, curves, confusion = (Image.open(path).convert("RGB") for path in paths)
    # The sheet and the confusion matrix share the first row at the same height; the curves fill the second.
    height = round(WIDTH / (sheet.width / sheet.height + confusion.width / confusion.height))
    sheet, confusion = (scaled(picture, height=height) for picture in (sheet, confusion))
    curves = scaled(curves, height=round(WIDTH * curves.height / curves.width))
    page = Image.new("RGB", (WIDTH, height + curves.height), "white")
    for picture, place in ((sheet, (0, 0)), (confusion, (sheet.width, 0)), (curves, (0, height))):
        page.paste(picture, place)
    with replacing(out) as temporary:
        page.quantize(256).save(temporary, optimize=True)


def scaled(picture: Image.Image, *, height: int) -> Image.Image:
    """Returns the picture scaled to a height, with its aspect ratio."""
    return picture.resize((round(picture.width * height / picture.height), height))


if __name__ == "__main__":
    main()
