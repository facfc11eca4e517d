"""Draws the icons of the page that `kmed demo` writes: a cell, and bars for the model's probabilities.

python scripts/demo_icons.py
"""

import pathlib

from PIL import Image, ImageDraw

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "kmed" / "deployment" / "webapp"
SIZES = (192, 512)  # the sizes that browsers need for an installable page
FINE = 2048  # drawn large and shrunk, for smooth edges

NIGHT, PALE, BLUE, ORANGE = "#0b2a3f", "#dcecf6", "#58b0e3", "#f08a48"


def draw() -> Image.Image:
    """Returns the icon, FINE x FINE; its content is in the middle 80 %, since phones cut off the corners."""
    icon = Image.new("RGB", (FINE, FINE), NIGHT)
    pen = ImageDraw.Draw(icon)
    disc(pen, 0.50, 0.375, 0.215, PALE)
    for x, y, radius in ((0.455, 0.345, 0.082), (0.545, 0.335, 0.075), (0.505, 0.425, 0.080)):  # a lobed nucleus
        disc(pen, x, y, radius, "#6a4fa0")
    for row, (share, color) in enumerate(((0.92, ORANGE), (0.38, BLUE), (0.20, BLUE))):
        top, left, width = 0.655 + 0.075 * row, 0.235, 0.53
        bar(pen, left, top, width, "#1d4661")
        bar(pen, left, top, width * share, color)
    return icon


def disc(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, color: str) -> None:
    """Draws a filled circle; places and lengths are shares of the side."""
    pen.ellipse([FINE * (x - radius), FINE * (y - radius), FINE * (x + radius), FINE * (y + radius)], fill=color)


def bar(pen: ImageDraw.ImageDraw, left: float, top: float, width: float, color: str) -> None:
    """Draws a bar with round ends; places and lengths are shares of the side."""
    height = 0.045
    box = [FINE * left, FINE * top, FINE * (left + width), FINE * (top + height)]
    pen.rounded_rectangle(box, radius=FINE * height / 2, fill=color)


if __name__ == "__main__":
    for size in SIZES:
        small = draw().resize((size, size), Image.Resampling.LANCZOS).quantize(64)
        small.save(FOLDER / f"icon-{size}.png", optimize=True)
