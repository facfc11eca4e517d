"""Pictures of other hospitals, drawn: class folders with patients, and findings in a table."""

import numpy as np
import pandas as pd
from PIL import Image

COLOURS = ("red", "green", "blue")
FINDINGS = ("Edema", "Mass", "No Finding")


def draw_hospital(folder, names=COLOURS, patients=12, seed=5, dim=0):
    """Writes CLASS/PATIENT/picture.png, 2 per patient: coloured noise, as `small_npz` has it, perhaps darker."""
    rng = np.random.default_rng(seed)
    for patient in range(patients):
        channel = patient % 3
        for number in range(2):
            pixels = rng.integers(0, 120, (32, 40, 3))
            pixels[:, :, channel] += 60
            path = folder / names[channel] / f"p{seed}_{patient:02d}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.clip(pixels - dim, 0, 255).astype(np.uint8)).save(path)
    return folder


def draw_findings(folder, seed, patients=20, suffix=".png"):
    """Writes two pictures per patient; returns the table: path, patient, and 0 or 1 for each of FINDINGS."""
    rng, rows = np.random.default_rng(seed), []
    folder.mkdir(parents=True)
    for number in range(2 * patients):
        mass, edema = rng.random(2) < 0.4
        pixels = rng.integers(0, 120, (16, 16, 3)) + np.array([60 * mass, 60 * edema, 0])
        name = f"{seed}_{number}{suffix}"
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
        found = {"Edema": int(edema), "Mass": int(mass), "No Finding": int(not (mass or edema))}
        rows.append({"path": name, "patient": f"p{number // 2}", **found})
    return pd.DataFrame(rows)
