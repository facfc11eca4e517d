"""`kmed.classify_files`: the predictions for files, one by one, and as lines of text, JSON or CSV."""

import concurrent.futures
import csv
import dataclasses
import glob
import io
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from PIL import Image

from kmed.data.images import Resizing, read_image
from kmed.data.readers.walk import is_hidden, is_image, repeated_note, walk
from kmed.deployment import case_answers, shards
from kmed.deployment.dicom_reports import DicomReports, name_model
from kmed.errors import ConfigError, DataError, KmedError
from kmed.evaluation.decisions import DecisionRule, decision_rule, read_fitted
from kmed.evaluation.members import disagreement
from kmed.evaluation.novelty import Novelty, feature_model, look, run_novelty
from kmed.evaluation.predictor import open_model
from kmed.files import replacing
from kmed.labels import printable
from kmed.models.heatmaps import explain_and_overlay
from kmed.models.keras_file import load_run_model
from kmed.progress import say, track
from kmed.runs import Run, finished_run, judged_split

NOTED = 0.1  # a disagreement of members that is worth a remark in a line of text


@dataclasses.dataclass(frozen=True)
class Answer:
    """The prediction for one file.

    Attributes:
      path: the file, as it was found.
      found: the most probable class, or the findings over their thresholds.
      probs: class name -> calibrated probability.
      prediction_set: the classes in the conformal prediction set.
      disagreement: of an ensemble's members, from 0 to 0.5, see `kmed.evaluation.members.disagreement`; None if the run
        or the format has no members.
      distance: to the training pictures, see `kmed.evaluation.novelty`; None if the run or the format has none.
      threshold: of the distance; None likewise.
      unlike_training: whether the distance is above the threshold; None likewise.
      overlay: a PNG that shows the evidence for the most probable class; None unless asked for.
      error: why there is no prediction, or "".
      report: a DICOM structured report of this answer; None unless asked for.
      pictures: of an answer for a case, how many were pooled; None for a single picture. Such an answer has the case in
        the place of the path, and no prediction set.
    """

    path: str
    found: tuple[str, ...] = ()
    probs: dict[str, float] = dataclasses.field(default_factory=dict)
    prediction_set: tuple[str, ...] = ()
    disagreement: float | None = None
    distance: float | None = None
    threshold: float | None = None
    unlike_training: bool | None = None
    overlay: str | None = None
    report: str | None = None
    error: str = ""
    pictures: int | None = None


def find_pictures(sources: Iterable) -> list[str]:
    """Returns the paths of the pictures in files, folders (with all folders below them) and globs.

    Folders give the pictures that `kmed.data.readers.walk.walk` finds, those behind links too, each file once. Globs
    give the files with a picture's suffix. Both are sorted; a file is taken whatever its name. A picture that is given
    twice is returned twice.

    Raises: DataError: a source does not exist, holds no picture, or is a folder that cannot be opened.
    """
    found = []
    for source in map(str, sources):
        path = pathlib.Path(source)
        if path.is_dir():
            inside = _in_folder(path)
        elif path.exists():
            inside = [source]
        else:
            inside = _in_glob(source)
        if not inside:
            is_glob = glob.has_magic(source)
            reason = "holds no pictures" if path.is_dir() else "matches no picture" if is_glob else "does not exist"
            raise DataError(f"{source} {reason}. Give pictures, folders or globs such as 'smears/*.png'.")
        found += inside
    return found


def _in_folder(folder: pathlib.Path) -> list[str]:
    found = walk(folder)
    repeated = found.repeated(found.pictures)
    for note in [*found.notes(), *repeated_note(repeated)]:
        say(note)
    return [str(folder / path) for path in found.pictures if path not in repeated]


def _in_glob(pattern: str) -> list[str]:
    """Returns the sorted pictures that match; "**" follows links, but gives each file once and no hidden folders."""
    matches = glob.glob(pattern, recursive=True)  # noqa: PTH207 - Path.glob refuses absolute patterns
    matches = sorted(match for match in matches if is_image(match) and pathlib.Path(match).is_file())
    if "**" not in pattern:
        return matches
    written = set(pathlib.PurePath(pattern).parts)
    shown = [match for match in matches if not any(map(is_hidden, set(pathlib.PurePath(match).parts) - written))]
    return list({os.path.realpath(match): match for match in reversed(shown)}.values())[::-1]


def classify_files(
    run_folder,
    sources=(),
    *,
    manifest=None,
    shard: str | None = None,
    format: str = "keras",
    quantize: str = "none",
    by: str | None = None,
    explain=None,
    dicom_sr=None,
    batch_size: int = 32,
) -> Iterator[Answer]:
    """Yields one Answer per picture, in order, with at most three batches of pictures in memory; or one per case.

    A file that cannot be read gives an Answer with its error, and the next ones follow. Pictures of the next batch
    are decoded while the model predicts the present one.

    Args:
      run_folder: what `kmed train` made.
      sources: files, folders or globs; see `find_pictures`.
      manifest: a text file with the path of one picture per line, or a CSV with a column `path`, which come after those
        of `sources`; see `kmed.deployment.shards`.
      shard: "I/N", such as "3/8": only part I of N of all these pictures; None: all of them.
      format, quantize: which of the run's files predicts; see `kmed.evaluation.predictor.open_model`. Only the Keras
        model can flag pictures unlike the training data.
      by: what the pictures of a case share: "folder", "regex:...(...)" in their paths, or "FILE.csv:COLUMN"; see
        `kmed.deployment.case_answers`. There is then one Answer per case, after those for unreadable pictures.
      explain: a folder for PNGs that show the evidence for each picture's most probable class; None: none are made.
      dicom_sr: a folder for DICOM structured reports, one per picture, also with `by`; the pictures must then be DICOM
        files. None: none are made. See `kmed.deployment.dicom_reports`.
      batch_size: pictures per step.
    Raises: RunError: there is no such run or export. DataError: there are no pictures, or with `dicom_sr` one that is
      not DICOM. ConfigError: highdicom is not installed. All are raised at once, not at the first Answer.
    Example:
      >>> for answer in classify_files("saved_models/latest", ["smears"]):
      ...     print(answer.path, answer.found)
    """
    run = finished_run(run_folder)
    if shard is not None and by is not None:
        raise ConfigError("With --shard, a case might be in two parts: --by needs all pictures at once.")
    paths = find_pictures(sources) + ([] if manifest is None else shards.listed_pictures(manifest))
    if not paths:
        raise DataError("There is nothing to predict. Give pictures, folders, globs or a manifest.")
    paths = paths if shard is None else shards.take_shard(paths, shard)
    cases = None if by is None else case_answers.find_cases(paths, by)
    folders = {"explain": explain, "dicom_sr": dicom_sr}
    model = Answerer(run, format, quantize, batch_sizes=(batch_size,), paths=paths, pooled=cases is not None, **folders)
    answers = _stream(paths, model, batch_size)
    if cases is None:
        return answers
    fitted, exclusive = read_fitted(run), model.rule.task.exclusive
    pooling, thresholds = case_answers.choose_rule(fitted, exclusive), case_answers.choose_thresholds(fitted, exclusive)
    return case_answers.pool_answers(answers, cases, model.rule, pooling, thresholds)


def _stream(paths: list[str], model: "Answerer", batch_size: int) -> Iterator[Answer]:
    batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    if not batches:  # more parts than pictures
        return
    pool = concurrent.futures.ThreadPoolExecutor(max(os.cpu_count() or 1, 2), "kmed-pictures")
    try:
        coming = [pool.submit(model.read, path) for path in batches[0]]
        for number, batch in enumerate(track(batches, f"Predicting {len(paths)} pictures, batches", len(batches))):
            read = [future.result() for future in coming]
            following = batches[number + 1] if number + 1 < len(batches) else []
            coming = [pool.submit(model.read, path) for path in following]
            yield from model.answer(batch, read)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a caller that stops early does not wait for the next batch


class Answerer:
    """A run's model, and everything that an Answer holds besides its probabilities.

    Attributes:
      rule: how probabilities become decisions.
      predictor: the run's model in the format that predicts.
      batch_sizes: ascending; a batch is filled up to the smallest of them that holds it.
    """

    def __init__(
        self,
        run: Run,
        format: str = "keras",
        quantize: str = "none",
        *,
        batch_sizes: tuple[int, ...] = (32,),
        explain=None,
        dicom_sr=None,
        paths: Sequence[str] = (),
        pooled: bool = False,
    ):
        """Loads the model, and says what its answers lack.

        Args:
          run: a finished run.
          format, quantize: as for `classify_files`.
          batch_sizes: the sizes of batches that the Keras model is compiled for; `answer` takes at most the last.
          explain, dicom_sr: folders for heat maps and for DICOM reports, or None.
          paths: the pictures that will be explained or reported, none of which may be overwritten.
          pooled: whether answers are pooled to cases, for which others are found than for single pictures.
        """
        config, self.batch_sizes = run.read_config(), batch_sizes
        self.resizing = Resizing.from_settings(config.data)
        self.rule: DecisionRule = decision_rule(run)
        if self.rule.constant is not None and not pooled:
            say(self.rule.constant.sentence(self.rule.task.exclusive))
        self.predictor = open_model(run, format, quantize)
        self.novelty: Novelty | None = None
        self.both = None
        if self.predictor.keras_model is not None:
            self.both = feature_model(self.predictor.keras_model)
        if self.both is None:
            lost = ", and the members' disagreement is not known" if run.ensemble.exists() else ""
            say(f"{format} gives only probabilities: pictures unlike the training data are not flagged{lost}.")
        elif not run.novelty.exists():
            say(
                f"{run.folder} has no {run.novelty.name}: pictures unlike its training data are not flagged. Add it in "
                f"Python with: kmed.fit_novelty({str(run.folder)!r})"
            )
        else:
            self.novelty, shares = run_novelty(run, self.both)
            split = judged_split(shares)
            of_split = f"; {shares[split]['value']:.1%} of its {split} pictures were flagged" if split in shares else ""
            say(
                "A picture is flagged if it is farther from the training pictures than "
                f"{1 - self.novelty.wanted:.0%} of the run's validation pictures{of_split}."
            )
        self.reports = None
        if dicom_sr is not None:
            self.reports = DicomReports(dicom_sr, name_model(run, self.predictor), paths)
        self.explained = None
        if explain is not None:
            self.explained = self.predictor.keras_model or load_run_model(run)
            # A source is never overwritten, even if it lies in the same folder.
            self.folder, self.taken = pathlib.Path(explain), {pathlib.Path(path).resolve() for path in paths}

    def read(self, source: str | bytes) -> np.ndarray | KmedError:
        """Returns the picture in a file, or in its bytes, uint8 (H, W, 3), or the error if it cannot be read."""
        try:
            if self.reports is not None and isinstance(source, str):
                self.reports.check(source)
            return read_image(source, self.resizing)
        except KmedError as error:
            return error

    def answer(self, paths: list[str], read: list) -> Iterator[Answer]:
        """Yields the answers to one batch.

        Args:
          paths: what the answers call the pictures.
          read: what `read` returned for each of them.
        """
        kept = [row for row, image in enumerate(read) if isinstance(image, np.ndarray)]
        answers = {row: Answer(paths[row], error=str(read[row])) for row in range(len(read)) if row not in kept}
        if kept:
            images = np.stack([read[row] for row in kept])
            predicted = self._predict(images, [paths[row] for row in kept])
            answers |= dict(zip(kept, predicted, strict=True))
        yield from (answers[row] for row in range(len(read)))

    def _predict(self, images: np.ndarray, paths: list[str]) -> list[Answer]:
        distances = unlike = apart = [None] * len(images)
        if self.both is None:
            probs = self.predictor.predict(images)
        else:
            size = next(size for size in self.batch_sizes if size >= len(images))
            features, raw, *logits = look(self.both, images, size)
            probs = self.rule.calibration.apply(raw)
            if logits:
                apart = disagreement(logits[0], self.rule.task).tolist()
            if self.novelty is not None:
                away = self.novelty.distances(images, features)
                distances, unlike = away.tolist(), self.novelty.flags(away).tolist()
        found, sets = self.rule.decide(probs), self.rule.prediction_sets(probs)
        overlays = self._overlays(images, probs, paths) if self.explained is not None else [None] * len(images)
        names = self.rule.class_names
        answers = [
            Answer(
                path=path,
                found=_names(names, found[row]),
                probs=dict(zip(names, probs[row].astype(float).tolist(), strict=True)),
                prediction_set=_names(names, sets[row]),
                disagreement=apart[row],
                distance=distances[row],
                threshold=None if self.novelty is None else self.novelty.threshold,
                unlike_training=unlike[row],
                overlay=overlays[row],
            )
            for row, path in enumerate(paths)
        ]
        return answers if self.reports is None else [_report(answer, self.reports) for answer in answers]

    def _overlays(self, images: np.ndarray, probs: np.ndarray, paths: list[str]) -> list[str]:
        _, overlays = explain_and_overlay(self.explained, images, probs.argmax(axis=1))
        made = []
        for picture, path in zip(overlays, paths, strict=True):
            stem, count = pathlib.Path(path).stem, 2
            file = self.folder / f"{stem}_explained.png"
            while file.resolve() in self.taken:
                file, count = self.folder / f"{stem}-{count}_explained.png", count + 1
            self.taken.add(file.resolve())
            with replacing(file) as temporary:
                Image.fromarray(picture).save(temporary)
            made.append(str(file))
        return made


def _report(answer: Answer, reports: DicomReports) -> Answer:
    """Returns the answer with the path of its report, or with the reason why there is none."""
    try:
        report = reports.write(answer.path, answer.probs, answer.found, answer.unlike_training)
    except DataError as error:
        return Answer(answer.path, error=str(error))
    return dataclasses.replace(answer, report=report)


def _names(class_names, mask) -> tuple[str, ...]:
    return tuple(name for name, held in zip(class_names, mask, strict=True) if held)


_LAST_COLUMNS = ("disagreement", "distance", "threshold", "unlike_training", "overlay", "report", "error", "pictures")


def as_text(answers: Iterator[Answer]) -> Iterator[str]:
    """Yields one line of text per picture: what was found, its probability, and any reason not to trust it."""
    for answer in answers:
        name = printable(answer.path)
        if answer.error:
            yield f"{name}: not predicted: {printable(answer.error)}"
            continue
        found = ", ".join(f"{printable(name)} {answer.probs[name]:.3f}" for name in answer.found)
        notes = [found or "no finding over its threshold"]
        if answer.pictures is not None:
            notes.append(f"{answer.pictures} pictures" if answer.pictures > 1 else "1 picture")
        elif len(answer.prediction_set) > 1 or set(answer.prediction_set) != set(answer.found):
            notes.append(f"prediction set: {printable(', '.join(answer.prediction_set)) or 'empty'}")
        if answer.disagreement is not None and answer.disagreement >= NOTED:
            notes.append(f"the members disagree by {answer.disagreement:.2f}")
        if answer.unlike_training:
            notes.append("UNLIKE THE TRAINING PICTURES: do not trust this")
        yield f"{name}: {'; '.join(notes)}"


def as_json(answers: Iterator[Answer]) -> Iterator[str]:
    """Yields one line of JSON per picture, with all fields of `kmed.deployment.classify.Answer`."""
    for answer in answers:
        line = json.dumps(dataclasses.asdict(answer), ensure_ascii=False)
        yield re.sub("[\ud800-\udfff]", lambda found: ascii(found[0])[1:-1], line)  # bytes of a file's name


def as_csv(answers: Iterator[Answer], class_names) -> Iterator[str]:
    """Yields a header and one line per picture; several classes of a picture are joined by "|".

    Columns: path, found, prob_NAME for each class, prediction_set, disagreement (empty unless the run is an ensemble),
    distance, threshold, unlike_training, overlay, report, error, pictures.
    """
    columns = [f"prob_{name}" for name in class_names]
    yield _csv_line(["path", "found", *columns, "prediction_set", *_LAST_COLUMNS])
    for answer in answers:
        probs = [answer.probs.get(name, "") for name in class_names]
        last = ["" if value is None else value for value in (getattr(answer, name) for name in _LAST_COLUMNS)]
        yield _csv_line([answer.path, "|".join(answer.found), *probs, "|".join(answer.prediction_set), *last])


def _csv_line(cells: list) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerow(cells)  # which Python quotes inside a cell
    return buffer.getvalue().removesuffix("\r\n")
