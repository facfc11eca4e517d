"""Draws the demo X-rays: frontal chest radiographs with five visible findings, the same pixels for the same seed.

Cardiomegaly is a large heart, Effusion a blunted lung base, Nodule a small round spot, Mass a big one, and
Pneumothorax a dark rim without vessels. AP pictures, taken in bed, show a magnified heart, high diaphragms,
flat clavicles and the shoulder blades over the lungs. The exposure is set after drawing and belongs to the
patient, so the mean and spread of the grey levels tell nothing about the findings.
"""

import pathlib

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter

from kmed.data.demo.folder import drawing
from kmed.data.demo.patients import NO_FINDING, Anatomy, Visit, invent_patient
from kmed.errors import DataError
from kmed.progress import track

NUM_PATIENTS = 400
IMAGE_SIZE = (128, 128)
DRAWING_VERSION = 1  # part of the marker: increase it whenever the same seed would give other pixels or labels
LABELS_CSV = "sample_labels.csv"
FILM = 430.0  # millimetres that the picture's shorter side covers
SOFT = 0.03  # width of an edge; the unit is half the picture's side


def xrays_marker(seed: int = 0, num_patients: int = NUM_PATIENTS, image_size: tuple[int, int] = IMAGE_SIZE) -> dict:
    """Returns the folder's marker for X-rays drawn with these settings."""
    return {
        "drawn_by": "kmed", "what": "xrays", "version": DRAWING_VERSION, "seed": seed,
        "num_patients": num_patients, "image_size": list(image_size),
    }  # fmt: skip


def draw_demo_xrays(
    folder, *, num_patients: int = NUM_PATIENTS, seed: int = 0, image_size: tuple[int, int] = IMAGE_SIZE
) -> pathlib.Path:
    """Draws images/00000001_000.png and sample_labels.csv, laid out like Kaggle's NIH sample; returns the folder.

    Args:
      folder: the folder to write, whole or not at all. Earlier demo data in it are replaced.
      num_patients: number of patients; each has 1 to 8 pictures, 2.7 on average.
      seed: random seed, which determines every pixel and label. A patient does not depend on how many there are.
      image_size: (height, width) in pixels, at least 32.
    Raises: DataError: the folder holds other files, or the sizes cannot be drawn.
    """
    if num_patients < 1 or min(image_size) < 32:
        raise DataError(
            "The demo needs at least one patient and 32 pixels per side. "
            f"Received: num_patients={num_patients}, image_size={tuple(image_size)}."
        )
    with drawing(folder, xrays_marker(seed, num_patients, image_size)) as temporary:
        (temporary / "images").mkdir()
        rows = []
        for number in track(range(1, num_patients + 1), "Drawing patients"):
            patient = invent_patient(np.random.default_rng([seed, number, 0]), number)
            for visit in patient.visits:
                rng = np.random.default_rng([seed, number, visit.number + 1])
                image = draw_xray(rng, patient.anatomy, visit, image_size)
                rows.append(_row(patient, visit, image_size))
                image.save(temporary / "images" / rows[-1]["Image Index"])
        pd.DataFrame(rows).to_csv(temporary / LABELS_CSV, index=False, lineterminator="\n")
    return pathlib.Path(folder)


def _row(patient, visit, image_size):
    """Returns a row of the CSV, with Kaggle's columns."""
    height, width = image_size
    spacing = round(FILM / min(image_size), 3)
    return {
        "Image Index": f"{patient.number:08d}_{visit.number:03d}.png",
        "Finding Labels": "|".join(visit.findings) or NO_FINDING,
        "Follow-up #": visit.number,
        "Patient ID": patient.number,
        "Patient Age": f"{visit.age:03d}Y",
        "Patient Gender": patient.sex,
        "View Position": visit.view,
        "OriginalImageWidth": width,
        "OriginalImageHeight": height,
        "OriginalImagePixelSpacing_x": spacing,
        "OriginalImagePixelSpacing_y": spacing,
    }


def draw_xray(rng: np.random.Generator, anatomy: Anatomy, visit: Visit, image_size: tuple[int, int]) -> Image.Image:
    """Returns a grey picture of the patient at this visit; `rng` determines what differs between visits."""
    x, y = _stand(rng, image_size)
    base = anatomy.base + rng.normal(0, 0.03) - (0.06 if visit.view == "AP" else 0)  # in bed, breaths are shallow
    signs = {"side": anatomy.sign_side, "fluid": 0.0, "air": 0.0}
    fluid, air = rng.uniform(0.16, 0.36), rng.uniform(0.08, 0.17)
    signs["fluid"] = fluid if "Effusion" in visit.findings else 0.0
    signs["air"] = air if "Pneumothorax" in visit.findings else 0.0

    body = _body(x, y, anatomy)
    wall = _wall(x, y, anatomy)  # distance to the lungs' outline, negative inside
    floor = y - _floor(x, anatomy, base, signs)  # negative above diaphragm and fluid
    lung = _inside(wall) * _inside(floor)
    canvas = 0.60 * body
    canvas += lung * (anatomy.lung - canvas)
    canvas += _inside(wall) * _inside(-floor) * (0.84 - canvas)
    edge = _wall(x, y, anatomy, lateral=True) + signs["air"]  # of a lung that air has pushed off the chest wall
    aired = signs["air"] * (x * signs["side"] > 0)
    canvas += _vessels(rng, x, y, anatomy) * np.where(aired, _inside(edge), _inside(wall)) * _inside(floor)
    canvas += _air(y, wall, edge, aired) * _inside(floor)
    canvas += _stomach(rng, x, y, base) * _inside(-floor)
    for name, (spot_x, spot_y, radius) in anatomy.spots.items():
        if name in visit.findings:
            canvas += 0.34 * _inside(np.hypot(x - spot_x, y - spot_y) - radius, 0.05)
    canvas = _middle(canvas, x, y, anatomy, visit.view)
    canvas += _bones(x, y, anatomy, wall, visit.view) * body
    canvas += anatomy.breast * _breasts(x, y, anatomy)
    canvas = np.maximum(canvas, _letter(rng, x, y))
    return _expose(rng, canvas, anatomy)


def _stand(rng, image_size):
    """Returns x and y of each pixel, (H, W), in a frame that is slightly off: no patient stands quite straight."""
    height, width = image_size
    half = min(height, width) / 2
    rows = (np.arange(height)[:, None] - (height - 1) / 2) / half
    columns = (np.arange(width)[None, :] - (width - 1) / 2) / half
    angle, scale = np.radians(rng.normal(0, 1.5)), 1 + rng.normal(0, 0.025)
    shift_x, shift_y = rng.normal(0, 0.025, 2)
    x = (np.cos(angle) * columns - np.sin(angle) * rows) * scale - shift_x
    y = (np.sin(angle) * columns + np.cos(angle) * rows) * scale - shift_y
    return x, y


def _inside(distance, soft=SOFT):
    """Returns 1 where a distance is negative and 0 where it is positive, with a soft edge between."""
    return np.clip(0.5 - distance / soft, 0, 1)


def _body(x, y, anatomy):
    """Returns the body's thickness, 0 to 1: neck, shoulders, trunk."""
    half = anatomy.chest + 0.15 + 0.42 / (1 + np.exp((y + 0.25) / 0.08))  # the arms hang from y = -0.25 upwards
    shoulder = -0.86 + 0.30 * np.clip(np.abs(x) - 0.22, 0, None) ** 1.3
    trunk = _inside(np.abs(x) - half, 0.05) * _inside(shoulder - y, 0.05)
    neck = _inside(np.abs(x) - 0.24, 0.08) * (y < -0.5)
    thick = 0.75 + 0.25 * np.sqrt(np.clip(1 - (x / half) ** 2, 0, 1))
    return np.maximum(trunk, neck) * thick


def _wall(x, y, anatomy, lateral=False):
    """Returns the distance to the outline of the nearer lung, as if there were no diaphragm.

    `lateral` leaves out the side that faces the heart.
    """
    across = (np.abs(x) - 0.54 * anatomy.chest) / (0.46 * anatomy.chest)
    across = np.clip(across, 0, None) if lateral else np.abs(across)
    middle = 0.25
    up = np.clip(middle - y, 0, None) / (middle - anatomy.apex)
    return ((across**2.3 + up**2.3) ** (1 / 2.3) - 1) * 0.46 * anatomy.chest


def _floor(x, anatomy, base, signs):
    """Returns the height of the diaphragm's domes, and of fluid, which rises towards the chest wall."""
    top = np.where(x < 0, base, base + 0.05)  # the liver lifts the right dome
    lateral = (np.abs(x) - 0.45 * anatomy.chest) / (0.55 * anatomy.chest)
    dome = top + 0.30 * np.clip(lateral, 0, None) ** 2.2 + 0.08 * np.clip(-lateral, 0, None) ** 2
    if not signs["fluid"]:
        return dome
    level = top + 0.20 - signs["fluid"] - 0.16 * np.clip(lateral, 0, 1.2) ** 2
    return np.where(x * signs["side"] > 0, np.minimum(dome, level), dome)


def _vessels(rng, x, y, anatomy):
    """Returns the shadows of the lungs' roots and of the vessels that fan out from them."""
    shadow = np.zeros(np.broadcast(x, y).shape)
    for side in (-1, 1):
        root_x, root_y = side * 0.27 * anatomy.chest, rng.normal(-0.06, 0.03)
        outward, down = (x - root_x) * side, y - root_y
        reach = np.hypot(outward, down)
        shadow += 0.20 * np.exp(-((reach / 0.11) ** 2))
        for direction in np.linspace(-1.35, 1.25, 8) + rng.normal(0, 0.12, 8):
            bend = rng.normal(0, 0.25)
            along = np.cos(direction) * outward + np.sin(direction) * down
            beside = np.cos(direction) * down - np.sin(direction) * outward + bend * along**2
            width = np.clip(0.035 - 0.035 * along, 0.01, None)
            shadow += 0.10 * np.exp(-((beside / width) ** 2)) * (along > 0.04) * np.clip(1 - reach / 0.75, 0, 1)
    return np.minimum(shadow, 0.25)


def _air(y, wall, edge, aired):
    """Returns what air beside the lung adds to the picture: a dark rim, and the lung's own edge as a fine line."""
    fade = (aired > 0) * _inside(y - 0.2, 0.4)  # air rises
    line = np.exp(-((edge / 0.018) ** 2)) * _inside(wall)
    return fade * (0.10 * line + 0.04 * _inside(edge) - 0.13 * _inside(wall) * _inside(-edge))


def _stomach(rng, x, y, base):
    """Returns the dark bubble of air that often lies below the left dome."""
    size, middle = rng.uniform(0.05, 0.12), rng.uniform(0.25, 0.4)
    if rng.random() < 0.4:
        return 0.0
    return -0.25 * _inside(np.hypot((x - middle) / 1.5, y - base - 0.2) - size, 0.06)


def _middle(canvas, x, y, anatomy, view):
    """Returns the canvas with mediastinum, aorta, heart, spine and windpipe added."""
    heart = anatomy.heart * anatomy.chest * (1.10 if view == "AP" else 1.0)  # half its width; AP magnifies
    tall, angle = 0.12 + 0.55 * heart, 0.45
    center_x, center_y = 0.35 * heart, anatomy.base - 0.6 * tall
    along = np.cos(angle) * (x - center_x) + np.sin(angle) * (y - center_y)
    beside = np.cos(angle) * (y - center_y) - np.sin(angle) * (x - center_x)
    shape = (np.hypot(along / (1.07 * heart), beside / tall) - 1) * tall
    canvas = canvas + _inside(shape, 0.05) * np.clip(0.74 - canvas, 0, None)
    half = 0.13 + 0.05 * np.clip(y + 0.2, 0, 0.6) + 0.02 * (view == "AP")
    knob = np.hypot(x - 0.11, y + 0.34) - 0.10
    mask = np.maximum(_inside(np.abs(x) - half, 0.06), _inside(knob, 0.05)) * _inside(-0.85 - y, 0.2)
    canvas = canvas + mask * np.clip(0.70 - canvas, 0, None)
    discs = 0.5 + 0.5 * np.cos(2 * np.pi * y / 0.105)
    canvas = canvas + _inside(np.abs(x) - 0.075, 0.04) * (0.07 + 0.04 * discs)
    return canvas - 0.16 * _inside(np.abs(x + 0.01) - 0.035, 0.03) * _inside(y + 0.28, 0.1)


def _bones(x, y, anatomy, wall, view):
    """Returns ribs, clavicles and shoulder blades; the blades lie over the lungs in AP only."""
    out = np.abs(x) / anatomy.chest
    cage = _inside(wall - 0.04, 0.05) * np.clip((out - 0.1) / 0.2, 0, 1)
    back = _band((y - anatomy.apex - 0.26 * out**2 + 0.10 * out) / anatomy.rib_step, 0.22)
    front = _band((y - anatomy.apex + 0.38 * out) / anatomy.rib_step, 0.25) * np.clip((out - 0.4) / 0.2, 0, 1)
    lower = np.clip(1.1 - 0.9 * np.clip(y - 0.2, 0, None) / 0.5, 0.2, 1)
    bones = cage * lower * (0.09 * back + 0.045 * front)
    rise = 0.03 if view == "AP" else 0.20
    line = y - (anatomy.apex + 0.13 - rise * (np.abs(x) - 0.1) + (0.0 if view == "PA" else -0.05))
    reach = _inside(np.abs(np.abs(x) - 0.43) - 0.33, 0.06)
    bones = bones + 0.12 * _inside(np.abs(line) - 0.028) * reach
    inner = anatomy.chest * (0.60 if view == "AP" else 1.08) + 0.25 * np.abs(y + 0.15)
    blade = _inside(inner - np.abs(x)) * _inside(np.abs(y + 0.28) - 0.34, 0.15) * _inside(np.abs(x) - 1.0)
    return bones + (0.09 if view == "AP" else 0.07) * blade


def _band(phase, half):
    """Returns bands around the whole numbers of `phase`, brighter at their edges, like tubes."""
    distance = np.abs(phase - np.round(phase)) / half
    return np.where(distance < 1, 0.6 + 0.4 * distance**2, np.clip(1 - (distance - 1) / 0.35, 0, 1))


def _breasts(x, y, anatomy):
    distance = np.hypot((np.abs(x) - 0.6 * anatomy.chest) / 1.15, y - 0.22) - 0.30
    return _inside(distance, 0.06)


def _letter(rng, x, y):
    """Returns the lead letter "L" that marks the patient's left side."""
    left, top = rng.uniform(0.82, 0.9), rng.uniform(-0.95, -0.8)
    upright = (np.abs(x - left) < 0.015) & (np.abs(y - top - 0.05) < 0.06)
    foot = (np.abs(x - left - 0.025) < 0.04) & (np.abs(y - top - 0.1) < 0.015)
    return np.where(upright | foot, 1.0, 0.0)


def _expose(rng, canvas, anatomy):
    """Returns the picture, blurred and grainy; its mean and spread depend only on the patient's exposure."""
    size = min(canvas.shape) / 128
    grey = anatomy.grey + rng.normal(0, 3)
    pixels = _blurred(canvas, anatomy.blur * size)
    pixels = pixels + rng.normal(0, 0.02, pixels.shape)
    pixels = grey + anatomy.spread * (pixels - pixels.mean()) / pixels.std()
    return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))


def _blurred(canvas, radius):
    whole = Image.fromarray(np.clip(canvas * 220 + 10, 0, 255).astype(np.uint8))
    return np.asarray(whole.filter(ImageFilter.GaussianBlur(radius)), np.float32)
