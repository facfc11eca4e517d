"""Invents the patients of the demo X-rays: who they are, their findings, and the view of each picture.

Five findings are drawn, and a model can see them: Cardiomegaly, Effusion, Nodule, Mass, Pneumothorax.
The nine others are not drawn. They depend on the view, the patient's age and the other findings, as
defined in FOLLOWERS. A picture shows them only indirectly, through the drawn signs and the view, so no
model can predict them well.
"""

import dataclasses

import numpy as np

DRAWN = ("Cardiomegaly", "Effusion", "Mass", "Nodule", "Pneumothorax")
NO_FINDING = "No Finding"
OLD = 60  # years
MAX_PICTURES = 8  # per patient

# Finding -> (probability by itself, what each circumstance adds to it). A row may depend on the rows above it.
FOLLOWERS = {
    "Atelectasis": (0.02, {"Effusion": 0.20, "AP": 0.05}),
    "Edema": (0.005, {"Cardiomegaly": 0.12, "AP": 0.04}),
    "Infiltration": (0.03, {"AP": 0.10, "Effusion": 0.05}),
    "Consolidation": (0.01, {"Infiltration": 0.12, "AP": 0.04}),
    "Pneumonia": (0.005, {"Consolidation": 0.20, "Infiltration": 0.06}),
    "Emphysema": (0.015, {"Pneumothorax": 0.12, "old": 0.05}),
    "Fibrosis": (0.02, {"old": 0.07}),
    "Pleural_Thickening": (0.02, {"Effusion": 0.08, "old": 0.05}),
    "Hernia": (0.015, {"old": 0.04}),
}
LASTING = ("Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia")  # decided once per patient: they do not heal
FINDINGS = tuple(sorted((*DRAWN, *FOLLOWERS)))  # the 14 of NIH ChestX-ray14


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """What all pictures of a patient share. The unit of length is half the picture's side; the middle is (0, 0).

    Attributes:
      chest: half the inner width of the chest.
      apex, base: y coordinates (downwards) of the lungs' tops and of the right dome of the diaphragm.
      heart: width of the heart divided by that of the chest, from 0.4 (slim) to 0.6 (large).
      lung: opacity of the lungs; the body's is 0.6.
      breast: opacity of the breasts' shadows.
      rib_step: distance from rib to rib.
      sign_side: -1 if Effusion and Pneumothorax show on the picture's left (the patient's right), else 1.
      spots: (x, y, radius) of a Nodule and of a Mass, whether or not the patient has one.
      grey, spread: mean and standard deviation of the grey levels, 0..255: the exposure, and nothing else.
      blur: in pixels, for a side of 128 pixels.
    """

    chest: float
    apex: float
    base: float
    heart: float
    lung: float
    breast: float
    rib_step: float
    sign_side: int
    spots: dict
    grey: float
    spread: float
    blur: float


@dataclasses.dataclass(frozen=True)
class Visit:
    """One picture of a patient: number 0, 1, ... ; age in years; view "AP" or "PA"; findings, sorted."""

    number: int
    age: int
    view: str
    findings: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Patient:
    """A patient: number 1, 2, ... ; sex "F" or "M"; anatomy; and visits, one per picture."""

    number: int
    sex: str
    anatomy: Anatomy
    visits: tuple[Visit, ...]


def invent_patient(rng: np.random.Generator, number: int) -> Patient:
    """Returns a patient whose traits are all drawn from `rng`, with 1 to 8 visits; sick patients have more."""
    sex = str(rng.choice(["F", "M"]))
    age = int(np.clip(rng.normal(50, 17), 18, 88))
    large = rng.random() < (0.22 if age >= OLD else 0.09)
    prone = {
        "Cardiomegaly": 1.0 if large else 0.0,  # probability per visit: a large heart stays, fluid and air come and go
        "Effusion": 0.7 if rng.random() < (0.45 if large else 0.18) else 0.0,
        "Mass": float(rng.random() < 0.09),
        "Nodule": float(rng.random() < 0.12),
        "Pneumothorax": 0.7 if rng.random() < 0.14 else 0.0,
    }
    fate = {finding: rng.random() for finding in LASTING}
    num_visits = 1 + min(rng.poisson(1.5 + 0.3 * sum(prone.values())), MAX_PICTURES - 1)
    visits = []
    for visit in range(num_visits):
        age = age + int(visit > 0 and rng.random() < 0.3)
        drawn = [finding for finding, chance in prone.items() if rng.random() < chance]
        visits.append(_visit(rng, visit, age, drawn, fate))
    return Patient(number, sex, _anatomy(rng, sex, large), tuple(visits))


def _visit(rng, number, age, drawn, fate):
    """Returns a Visit; sick patients are more often imaged in bed (AP), and the findings of FOLLOWERS are added."""
    view = "AP" if rng.random() < 0.25 + 0.15 * len(set(drawn) - {"Nodule", "Mass"}) else "PA"
    given = {view, *drawn, *(["old"] if age >= OLD else [])}
    for finding, (chance, added) in FOLLOWERS.items():
        luck = rng.random()
        if fate.get(finding, luck) < chance + sum(more for cause, more in added.items() if cause in given):
            given.add(finding)
    return Visit(number, age, view, tuple(finding for finding in FINDINGS if finding in given))


def _anatomy(rng, sex, large):
    chest = rng.normal(0.66, 0.03) + (0.03 if sex == "M" else 0)
    spots = {}
    for name, low, high in (("Nodule", 0.055, 0.08), ("Mass", 0.13, 0.19)):
        side = rng.choice([-1, 1])
        radius = rng.uniform(low, high)
        spots[name] = (side * rng.uniform(0.5, 0.8) * chest, rng.uniform(-0.5, 0.25), radius)
    return Anatomy(
        chest=chest,
        apex=rng.normal(-0.76, 0.03),
        base=rng.normal(0.40, 0.04),
        heart=rng.uniform(0.54, 0.64) if large else rng.uniform(0.38, 0.47),
        lung=rng.uniform(0.14, 0.24),
        breast=rng.uniform(0.03, 0.09) if sex == "F" else 0.0,
        rib_step=rng.uniform(0.125, 0.16),
        sign_side=int(rng.choice([-1, 1])),
        spots=spots,
        grey=rng.normal(135, 9),
        spread=rng.normal(58, 3),
        blur=rng.uniform(0.4, 0.8),
    )
