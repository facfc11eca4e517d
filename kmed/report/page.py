"""A self-contained HTML page: numbers that say where they were read from, with figures and pictures embedded."""

import base64
import io
import math
import pathlib
import re

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from PIL import Image

from kmed.files import write_text
from kmed.runs import Run
from kmed.tasks import get_task

PICTURE_SIDE = 320  # pixels of a thumbnail's longer side: sharp on a phone, and a dozen take less than half a megabyte
_SHORT = {"auroc": "AUROC", "f1": "F1", "ece": "ECE", "brier": "Brier score", "hamming": "Hamming", "val": "validation"}
# Figures are drawn black on white; on the page they take its colours, which follow the reader's light or dark mode.
_COLORS = {
    "#000000": "currentColor",
    "#595959": "var(--muted)",
    "#b0b0b0": "var(--muted)",
    "#0072b2": "var(--blue)",
    "#d55e00": "var(--orange)",
    "#ffffff": "var(--paper)",
}


class Cited:
    """A value from one of the run's files, with the place it was read from; a template looks inside it with [key].

    A number is shown to three decimals. Its full value and its place (the file's name, then a JSON pointer, RFC 6901)
    stand in `data-value` and `data-from`, so that what the page shows can be checked.

    Example:
      >>> str(Cited("metrics.json", {"f1": 0.8333333})["f1"])
      '0.833'
    """

    def __init__(self, file: str, content, place: str = ""):
        self.file = file
        self.raw = content
        self.place = place

    def __getitem__(self, key):
        step = str(key).replace("~", "~0").replace("/", "~1")
        return Cited(self.file, self.raw[key], f"{self.place}/{step}")

    def __contains__(self, key) -> bool:
        return key in self.raw

    def __bool__(self) -> bool:
        return bool(self.raw)

    def __len__(self) -> int:
        return len(self.raw)

    def __iter__(self):
        """Iterates over the items of a list, or the keys of a dict."""
        return iter(self.raw) if isinstance(self.raw, dict) else (self[index] for index in range(len(self.raw)))

    def items(self):
        """Yields (key, Cited) for each item of a dict."""
        return ((key, self[key]) for key in self.raw)

    def __str__(self) -> str:
        return _text(self.raw)

    def __html__(self) -> Markup:
        if isinstance(self.raw, bool) or not isinstance(self.raw, (int, float, type(None))):
            return escape(str(self.raw))
        value = "" if self.raw is None or math.isnan(self.raw) else repr(self.raw)
        source = f"{self.file}#{self.place}"
        return Markup('<span class="num" data-value="{}" data-from="{}">{}</span>').format(value, source, str(self))


def _text(value) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "undefined"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def words(name: str) -> str:
    """Returns a score's name in words: "auroc_macro" -> "AUROC macro"."""
    return " ".join(_SHORT.get(word, word) for word in name.split("_"))


def inline_figure(figure: Figure, description: str, size: tuple[float, float] | None = None) -> Markup:
    """Returns a figure as an SVG element in the page's colours and font, with a description for screen readers.

    Args:
      figure: of kmed.figures.
      description: what the figure shows, in a sentence.
      size: (width, height) in inches for a new layout; a narrow figure stays readable on a phone.
    """
    if size is not None:
        figure.set_size_inches(*size)
    buffer = io.StringIO()
    # Text stays text. A fixed salt gives the same page for the same run.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "kmed"}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", pad_inches=0.05, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"| version="[^"]*"', "", svg)  # HTML needs no namespace for SVG
    svg = svg.replace("xlink:href", "href")
    # Ids that nothing refers to are dropped: every figure has the same ones, and a page's ids must be unique.
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda found: found[0] if found[1] in used else "", svg)
    for color, own in _COLORS.items():
        svg = re.sub(color, own, svg, flags=re.IGNORECASE)
    svg = re.sub(r"font: (?:\w+ )*?([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    head = Markup('<svg class="chart" role="img" aria-label="{}"').format(description)
    return head + Markup(svg.removeprefix("<svg"))


def picture(pixels: np.ndarray) -> str:
    """Returns uint8 (H, W, 3) as the data URI of a JPEG, no side longer than 320 pixels."""
    image = Image.fromarray(pixels)
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def run_content(run: Run) -> dict:
    """Returns what every page of a run shows: its name, its settings, also as they are written, and its task."""
    config = run.read_config()
    return {
        "name": run.folder.resolve().name,
        "config": config,
        "config_text": run.config.read_text(encoding="utf-8"),
        "task": get_task(config.task),
    }


def render_page(path: pathlib.Path, template: str, **content) -> pathlib.Path:
    """Writes a template of kmed/report/templates, filled with `content`, to `path` in one step; returns `path`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kmed.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["words"] = words
    write_text(path, environment.get_template(template).render(**content))
    return path
