"""What a run knows of its data: the answers to items on the study, the images, the labels and the partitions."""

from collections.abc import Callable

from kmed.report.checklist.facts import Answer, Facts, count, joined
from kmed.report.page import words


def _technology(facts: Facts) -> Answer:
    kind = "An ensemble of neural networks" if facts.ensemble else f"A neural network ({facts.config.model.name})"
    text = (f"{kind}, trained on labelled images to classify them ({facts.config.task}).",)
    return Answer(text, (*facts.settings("model.name", "task"), "report.html#card"))


def _task(facts: Facts) -> Answer:
    each = "exactly one of" if facts.task.exclusive else "any of"
    names = ", ".join(facts.class_names)
    return Answer((f"An image has {each} {len(facts.class_names)} classes: {names}.",), ("classes.json#/class_names",))


def _data(facts: Facts) -> Answer:
    text = (f"{facts.result['data']}, read from {facts.config.data.path or 'the built-in demo'}.",)
    return Answer(text, (*facts.settings("data.path"), "result.csv#data", "report.html#data"))


def _preprocessing(facts: Facts) -> Answer:
    data, height, width = facts.config.data, *facts.config.data.image_size
    text = (
        f"Images become RGB from 0 to 255 (16-bit values by the range {data.range}), resized to {height}x{width} "
        f"(height x width; {data.fit}, {data.interpolation}{_reduced_rule(data)}). Scaling and normalisation "
        "are inside the model. kmed checks that every file can be decoded; "
        f"unreadable ones are {_unreadable_rule(facts)}.",
    )
    keys = ("data.image_size", "data.fit", "data.interpolation", "data.decode", "data.range", "model.normalization")
    return Answer(text, (*facts.settings(*keys), "classes.json#/input"))


def _reduced_rule(data) -> str:
    return "" if data.decode == "full" else "; JPEG files decoded at 1/2, 1/4 or 1/8 of their size, if that is enough"


def _unreadable_rule(facts: Facts) -> str:
    return "left out and listed" if facts.config.data.skip_unreadable else "an error"


def _whole(facts: Facts) -> Answer:
    cut = "cropped to its aspect ratio" if facts.config.data.fit == "crop" else "used as a whole"
    return Answer((f"kmed selects no part of an image: each is {cut}.",), facts.settings("data.fit"))


def _missing(facts: Facts) -> Answer:
    training = facts.metrics["training"]
    pairs = zip(facts.class_names, training["known"].raw, strict=True)
    unknown = [f"{name} {training['num_images'].raw - known:,}" for name, known in pairs]
    listed = ", ".join(text for text in unknown if not text.endswith(" 0")) or "none"
    text = (
        f"Training images whose label is unknown: {listed}. An unknown label counts neither in the loss nor in a "
        f"score; nothing is imputed. Unreadable files are {_unreadable_rule(facts)}.",
    )
    places = ("metrics.json#/training/known", f"metrics.json#/{facts.split}/counts")
    return Answer(text, (*places, *facts.settings("data.skip_unreadable"), *facts.files("unreadable.csv")))


def _labels(facts: Facts) -> Answer:
    changed = facts.config.data.corrections
    how = f"with the corrections in {changed}" if changed else "unchanged"
    text = (f"The labels that came with the data, {how}. Classes: {', '.join(facts.class_names)}.",)
    return Answer(text, ("classes.json#/class_names", *facts.settings("data.label_columns", "data.corrections")))


def _predictors(facts: Facts) -> Answer:
    text = ("The pixels of one image are the only predictors; no clinical variable is used.",)
    return Answer(text, ("classes.json#/input", *facts.settings("data.image_size")))


def _automatic(facts: Facts) -> Answer:
    return Answer(("Nobody interprets the predictors: they are pixels.",), ("classes.json#/input",))


# ---- Partitions -----


def _sizes_of(facts: Facts) -> str:
    return "; ".join(
        f"{words(part['name'])} {count(part['pictures'], 'image')} of {count(part['groups'], 'group')}"
        for part in facts.data
    )


def _partitions(facts: Facts) -> Answer | None:
    if not facts.data:
        return None
    data = facts.config.data
    how = (
        f"read from {data.splits}" if data.splits else "as the data give them; those that they lack were drawn by kmed"
    )
    text = (
        f"{_sizes_of(facts)}. The partitions are {how} (seed {facts.config.seed}, val_fraction {data.val_fraction:g}, "
        f"test_fraction {data.test_fraction:g}): by group, so that each has its share of images and of each class. The "
        "model was trained on train; its epoch, calibration and thresholds were chosen on validation.",
    )
    keys = ("data.splits", "data.val_fraction", "data.test_fraction", "seed")
    return Answer(text, ("splits.csv#split", *facts.settings(*keys), "report.html#data"))


def _disjoint(facts: Facts) -> Answer | None:
    if not facts.data:
        return None
    shared = int((facts.run.read_splits().groupby("group")["split"].nunique() > 1).sum())
    if all(part["groups"] == part["pictures"] for part in facts.data):
        text = "At the level of images: the data do not say which of them belong to one patient or photograph."
    else:
        what = f" (data.group: {facts.config.data.group})" if facts.config.data.group else ""
        text = f"At the level of groups{what}: {count(shared, 'group')} in more than one partition."
    return Answer((text,), ("splits.csv#group", *facts.settings("data.group"), "report.html#data"))


def _sizes(facts: Facts) -> Answer:
    assessed, training = facts.assessed, facts.metrics["training"]
    text = (
        "Trained on ", training["num_images"], " images of ", training["num_groups"], " groups; scored on ",
        assessed["num_images"], f" images of the {words(facts.split)} split, of ",
        assessed["num_clusters"], " clusters.",
    )  # fmt: skip
    return Answer(text, ("metrics.json#/training", f"metrics.json#/{facts.split}/num_images", "report.html#data"))


def _events(facts: Facts) -> Answer:
    counts = facts.metrics["training"]["positives"]
    train = joined([(f"{name} ", counts[index]) for index, name in enumerate(facts.class_names)], ", ")
    scored = joined([(f"{name} ", part["positives"]) for name, part in facts.assessed["counts"].items()], ", ")
    text = ("Images of each class in train: ", *train, f"; in {words(facts.split)}: ", *scored, ".")
    return Answer(text, ("metrics.json#/training/positives", f"metrics.json#/{facts.split}/counts", "report.html#data"))


def _shares(facts: Facts) -> Answer:
    training, counts = facts.metrics["training"], facts.assessed["counts"]
    parts = []
    for index, name in enumerate(facts.class_names):
        before = _share(training["positives"][index].raw, training["known"][index].raw)
        parts.append(f"{name} {before} and {_share(counts[name]['positives'].raw, counts[name]['known'].raw)}")
    text = (f"Share of each class in train and in {words(facts.split)}: {', '.join(parts)}.",)
    return Answer(text, ("metrics.json#/training/positives", f"metrics.json#/{facts.split}/counts", "report.html#data"))


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "unknown"


def _flow(facts: Facts) -> Answer | None:
    if not facts.data:
        return None
    left_out = "no file was left out as unreadable"
    if facts.run.unreadable.exists():
        lines = max(len(facts.run.unreadable.read_text(encoding="utf-8").splitlines()) - 1, 0)
        left_out = f"{count(lines, 'file')} left out as unreadable"
    text = (f"{_sizes_of(facts)}; {left_out}.",)
    return Answer(text, ("splits.csv#split", *facts.files("unreadable.csv"), "report.html#data"))


# Topic of an item -> the function that answers it; None: this run cannot.
DATA: dict[str, Callable[[Facts], Answer | None]] = {
    "technology": _technology,
    "task": _task,
    "data": _data,
    "preprocessing": _preprocessing,
    "whole": _whole,
    "missing": _missing,
    "labels": _labels,
    "predictors": _predictors,
    "automatic": _automatic,
    "partitions": _partitions,
    "disjoint": _disjoint,
    "sizes": _sizes,
    "events": _events,
    "shares": _shares,
    "flow": _flow,
}
