"""What a run knows of its model: the answers to items on training, evaluation and what is stored."""

from collections.abc import Callable

from kmed.report.checklist.facts import Answer, Facts, count, joined, score_text
from kmed.report.page import words


def _model(facts: Facts) -> Answer:
    count = f"{int(facts.result['parameters']):,} trainable parameters"
    if facts.ensemble:
        members = ", ".join(member["model"] for member in facts.ensemble["members"])
        name = f"The mean of {members} ({facts.ensemble['average']}), {count}"
    else:
        name = f"{facts.config.model.name}, {count}, options {facts.config.model.options or 'as published'}"
    outputs = "probabilities that sum to 1" if facts.task.exclusive else "independent probabilities"
    text = (f"{name}. In: one RGB image. Out: {len(facts.class_names)} {outputs}.",)
    where = (*facts.settings("model.name", "model.options"), "result.csv#parameters", *facts.files("model.keras"))
    return Answer(text, (*where, "report.html#card"))


def _software(facts: Facts) -> Answer:
    text = (f"{facts.result['versions'].replace(' ', ', ').replace('=', ' ')}; device: {facts.result['device']}.",)
    return Answer(text, (*facts.files("environment.json#/versions"), "result.csv#versions", "result.csv#device"))


def _initial(facts: Facts) -> Answer:
    if facts.ensemble:
        return Answer(("Those of the trained members.",), ("ensemble.json#/members",))
    weights = facts.config.model.weights
    start = f"The backbone starts from {weights}" if weights else "Random weights"
    return Answer((f"{start} (seed {facts.config.seed}).",), facts.settings("model.weights", "seed"))


def _training(facts: Facts) -> Answer:
    if facts.ensemble:
        return Answer(("The members were trained before; their folders say how.",), ("ensemble.json#/members",))
    train, augment = facts.config.train, facts.config.augment
    text = (
        f"{facts.result['epochs']} epochs of AdamW: loss {train.loss}, batches of {train.batch_size}, learning rate "
        f"{train.learning_rate:g}, weight decay {train.weight_decay:g}, label smoothing {train.label_smoothing:g}, "
        f"average of the weights {train.ema:g}, dtype {train.dtype}. Augmentation: {augment.level}, orientation "
        f"{augment.orientation}, mixup {augment.mixup:g}, cutmix {augment.cutmix:g}.",
    )
    where = (*facts.settings("train", "augment"), *facts.files("history.csv"), *facts.figures("history"))
    return Answer(text, (*where, "report.html#training"))


def _selection(facts: Facts) -> Answer:
    if facts.ensemble:
        text = (f"All members are averaged: {facts.ensemble['reason']}",)
        return Answer(text, ("ensemble.json#/average", "ensemble.json#/reason"))
    text = (
        f"The epoch with the best {facts.config.train.monitor}, {facts.result['best_epoch']} of "
        f"{facts.result['epochs']}. The test split was not looked at.",
    )
    return Answer(text, (*facts.settings("train.monitor", "train.patience"), "result.csv#best_epoch"))


def _ensemble(facts: Facts) -> Answer:
    if not facts.ensemble:
        return Answer(("None: one model predicts.",), facts.settings("model.name"))
    members = ", ".join(f"{member['path']} ({member['model']})" for member in facts.ensemble["members"])
    text = (f"The mean of the {facts.ensemble['average']} of {members}.",)
    return Answer(text, ("ensemble.json#/members", "ensemble.json#/average"))


def _imbalance(facts: Facts) -> Answer:
    train = facts.config.train
    text = (
        f"Class weights: {train.class_weights}; loss: {train.loss}; images drawn by {train.sample}. The probabilities "
        f"were calibrated afterwards on validation ({facts.fitted['calibration']['method'].raw}).",
    )
    keys = ("train.class_weights", "train.loss", "train.sample")
    return Answer(text, (*facts.settings(*keys), "calibration.json#/calibration/method", "report.html#calibration"))


def _output(facts: Facts) -> Answer:
    rule = facts.fitted["thresholds"]["rule"].raw
    if facts.task.exclusive:
        text = ("Calibrated probabilities that sum to 1; the most probable class is the answer.",)
    else:
        text = (
            f"Calibrated probabilities; a finding is reported from a threshold of its own, chosen for {rule} on the "
            "validation split.",
        )
    where = ("calibration.json#/thresholds/values", *facts.settings("evaluate.thresholds"), "report.html#thresholds")
    return Answer(text, where)


def _predictions(facts: Facts) -> Answer:
    text = (
        "By model.keras, which takes raw pixels, and the calibration in calibration.json; the predictions are stored. "
        f"Views averaged per image: {facts.config.evaluate.views}.",
    )
    stored = ("predictions.csv#path", *facts.files("model.keras"), "calibration.json#/calibration")
    return Answer(text, (*stored, *facts.settings("evaluate.views")))


# ---- Evaluation -----


def _measures(facts: Facts) -> Answer:
    names = ", ".join(words(name) for name in facts.assessed["scores"])
    drawn = facts.figures(f"reliability_{facts.split}", f"risk_coverage_{facts.split}")
    text = (f"{names}; reliability diagrams and risk-coverage curves. The page explains each of them.",)
    return Answer(
        text, (f"metrics.json#/{facts.split}/scores", *drawn, "report.html#scores", "report.html#calibration")
    )


def _uncertainty(facts: Facts) -> Answer:
    assessed = facts.assessed
    text = (
        f"Percentile intervals of {100 * assessed['level'].raw:g} % from ", assessed["num_resamples"],
        " bootstrap resamples of whole clusters (", assessed["num_clusters"],
        " in this split). Whether the model is better than constant answers is tested by a paired interval: ",
        assessed["verdict"]["sentence"],
    )  # fmt: skip
    where = (*facts.settings("evaluate.level", "evaluate.num_resamples", "data.cluster"),)
    return Answer(text, (*where, f"metrics.json#/{facts.split}/verdict", "splits.csv#cluster"))


def _robustness(facts: Facts) -> Answer | None:
    return _subgroups(facts) or _novelty(facts)


def _novelty(facts: Facts) -> Answer | None:
    if "novelty" not in facts.metrics or not facts.metrics["novelty"]:
        return None
    found = facts.metrics["novelty"]
    shown = found[facts.split]["value"] if facts.split in found and found[facts.split] else "unknown"
    text = (
        "An image is flagged if it lies farther from the training images than nearly all validation images. Share of "
        f"the {words(facts.split)} split that is flagged: ", shown, ".",
    )  # fmt: skip
    return Answer(text, ("metrics.json#/novelty", *facts.settings("evaluate.novelty_false_alarms")))


def _explanations(facts: Facts) -> Answer | None:
    if not facts.gallery["explained"]:
        return None
    text = ("Maps of what supports an answer (Grad-CAM, or the relevance of patches) for right and wrong answers.",)
    return Answer(text, ("report.html#attention",))


def _internal(facts: Facts) -> Answer:
    shown = joined([score_text(name, score) for name, score, _ in facts.headline])
    text = (f"On the {words(facts.split)} split: ", *shown, ".")
    if facts.split != "test":
        text += (" There is no test split here: these scores are too optimistic, since the epoch was chosen on them.",)
    elif "val" in facts.metrics and facts.metrics["val"]:
        before = facts.metrics["val"]["scores"]
        text += (" On validation: ", *joined([score_text(name, before[name]) for name, _, _ in facts.headline]), ".")
    return Answer(text, (f"metrics.json#/{facts.split}/scores", "report.html#scores", "report.html#training"))


def _external(facts: Facts) -> Answer | None:
    found = sorted(path.parent for path in facts.run.folder.glob("external/*/metrics.json"))
    if not found:
        return None
    text = (f"Scored on other data: {', '.join(folder.name for folder in found)}.",)
    return Answer(text, tuple(f"external/{folder.name}/metrics.json" for folder in found))


def _performance(facts: Facts) -> Answer:
    shown = joined(
        [
            (*score_text(name, score), ", ", *score_text("best constant answer", best))
            for name, score, best in facts.headline
        ]
    )
    columns = ", ".join(facts.assessed["subgroups"])
    text = (*shown, f". By subgroup: {columns or 'none was given'}.")
    where = (f"metrics.json#/{facts.split}/scores", "report.html#scores")
    return Answer(text, (*where, *(("report.html#subgroups",) if columns else ())))


def _per_class(facts: Facts) -> Answer:
    parts = [score_text(f"{name}:", scores["auroc"]) for name, scores in facts.assessed["per_class"].items()]
    drawn = facts.figures(f"per_class_{facts.split}", f"confusion_{facts.split}")
    text = ("AUROC with its interval, by class: ", *joined(parts), ". Precision and recall are beside it on the page.")
    return Answer(text, (f"metrics.json#/{facts.split}/per_class", *drawn, "report.html#classes"))


def _errors(facts: Facts) -> Answer:
    wrong = facts.gallery["num_wrong"]
    text = (f"{count(wrong, 'image')} of the {words(facts.split)} split decided wrongly; the surest are shown.",)
    drawn = facts.figures(f"confusion_{facts.split}")
    return Answer(text, ("report.html#errors", "predictions.csv#path", *drawn))


def _subgroups(facts: Facts) -> Answer | None:
    columns = facts.assessed["subgroups"]
    if not columns:
        return None
    parts = []
    for column, values in columns.items():
        sizes = [(f"{value}: ", scored["num_images"]) for value, scored in values.items()]
        parts.append((f"{column} (", *joined(sizes, ", "), " images)"))
    text = ("Scored separately by ", *joined(parts), ".")
    return Answer(text, (f"metrics.json#/{facts.split}/subgroups", "report.html#subgroups"))


# ---- Other information -----


def _command(facts: Facts) -> Answer:
    text = ("The command that made the run, with every setting, for kmed of the version that is stored beside it.",)
    return Answer(text, ("result.csv#command", "result.csv#versions", "report.html#card"))


def _files(facts: Facts) -> Answer | None:
    exported = sorted(path.name for path in facts.run.exports.glob("*") if path.suffix != ".json")
    held = facts.files("model.keras", *(f"export/{name}" for name in exported))
    if not held:
        return None
    return Answer((f"The run folder holds the whole model: {', '.join(held)}.",), (*held, "report.html#card"))


# Topic of an item -> the function that answers it; None: this run cannot.
MODEL: dict[str, Callable[[Facts], Answer | None]] = {
    "model": _model,
    "software": _software,
    "initial": _initial,
    "training": _training,
    "selection": _selection,
    "ensemble": _ensemble,
    "imbalance": _imbalance,
    "output": _output,
    "predictions": _predictions,
    "measures": _measures,
    "uncertainty": _uncertainty,
    "robustness": _robustness,
    "novelty": _novelty,
    "explanations": _explanations,
    "internal": _internal,
    "external": _external,
    "performance": _performance,
    "per_class": _per_class,
    "errors": _errors,
    "subgroups": _subgroups,
    "command": _command,
    "files": _files,
}
