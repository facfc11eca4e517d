"""`kmed demo`: a static page that runs a run's TFLite file in the browser, also without a network."""

import hashlib
import json
import pathlib
import shutil

import jinja2
import PIL

from kmed.errors import RunError
from kmed.evaluation.predictor import describe_run, export_path
from kmed.files import digest_of, is_vacant, replacing, write_json, write_text
from kmed.formats.tflite_metadata import read_description
from kmed.metrics.intervals import FEW_CLUSTERS
from kmed.progress import say
from kmed.report.page import words
from kmed.runs import finished_run
from kmed.tasks import get_task

WEBAPP = pathlib.Path(__file__).parent / "webapp"
MODEL, DESCRIPTION = "model.tflite", "model.json"
WORKER, PAGE, MANIFEST = "service-worker.js", "index.html", "manifest.webmanifest"
_FITS = {"pad": "padded with black", "crop": "cropped in the middle", "stretch": "stretched"}
_SPLITS = {"test": "test pictures, which it had not seen", "val": "validation pictures, on which its epoch was chosen"}


def write_demo(run_folder, out, *, quantize: str = "none", data=None) -> pathlib.Path:
    """Writes a page that runs a finished run's model to the folder `out`; returns `out`.

    The page holds the run's exported TFLite file. If there is none, or if its description differs from the run's
    present scores or thresholds, the model is exported first, which reads the run's pictures.

    Args:
      run_folder: what `kmed train` made.
      out: a new or empty folder, or an older demo, which is replaced.
      quantize: "none", "float16", "dynamic" or "int8": how the model is stored.
      data: where the run's pictures are now, if they have moved; only read for an export.
    Raises: RunError: there is no such run, `out` holds something else or cannot be written, or the export is refused.
      ConfigError: an unknown quantization. DataError: an export is needed, but the pictures cannot be read.
    Example:
      >>> write_demo("saved_models/latest", "demo")
    """
    run = finished_run(run_folder)
    path, description = export_path(run, "tflite", quantize), describe_run(run)
    check_out(out)
    if not _is_current(path, description):
        from kmed.deployment.exporting import export

        path = export(run_folder, "tflite", quantize, data=data).path
    level = run.read_config().evaluate.level
    return write_page(path, description, out, title=run.folder.resolve().name, level=level)


def write_page(tflite, description: dict, out, *, title: str, level: float = 0.95) -> pathlib.Path:
    """Writes a page that runs any TFLite file to the folder `out`, whole or not at all; returns `out`.

    Args:
      tflite: the file; one input, float32 (1, H, W, 3), RGB in [0, 255], and one output, float32 (1, K),
        calibrated probabilities.
      description: of the model, from `kmed.evaluation.predictor.describe_run`.
      out: a new or empty folder, or an older demo, which is replaced.
      title: of the page, and of the app if a user installs it.
      level: nominal coverage of the test score's interval, in (0, 1).
    Raises: RunError: `out` holds something else or cannot be written; there is no such TFLite file.
    """
    out, tflite = check_out(out), pathlib.Path(tflite)
    if not tflite.is_file():
        raise RunError(f"There is no TFLite file {tflite}. Make it with: kmed export RUN --format tflite")
    if "decode" in description:
        say(
            "The model was trained with data.decode=reduced. Browsers decode JPEG files at their full size, so the "
            "page takes means of pixels; its probabilities differ a little from those of kmed predict."
        )
    content = _content(description, title, level, tflite.stat().st_size)
    # Versions of Pillow resize to different pixels; the page follows the one that is installed.
    facts = {"title": title, "model_bytes": tflite.stat().st_size, "pillow_version": PIL.__version__, **description}
    with replacing(out) as folder:
        shutil.copytree(WEBAPP, folder, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copyfile(tflite, folder / MODEL)
        write_json(folder / DESCRIPTION, facts)
        write_text(folder / PAGE, _fill(PAGE, **content))
        manifest = json.loads((WEBAPP / MANIFEST).read_text(encoding="utf-8"))
        manifest |= {"name": title, "short_name": title, "description": content["summary"]}
        write_json(folder / MANIFEST, manifest)
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        files = ["./" if name == PAGE else name for name in files if name != WORKER]
        write_text(folder / WORKER, _fill(WORKER, files=files, version=_hash(folder)))
    return out


def check_out(out) -> pathlib.Path:
    """Returns the path of the folder `out`. Raises RunError unless it is new, empty or an older demo."""
    out = pathlib.Path(out)
    if out.exists() and not out.is_dir():
        raise RunError(f"--out {out} is a file. Give a folder that does not exist yet.")
    ours = (out / DESCRIPTION).is_file() and (out / WORKER).is_file()
    if not ours and not is_vacant(out):
        raise RunError(f"{out} is not empty and does not hold an older demo. Choose another --out.")
    if out.resolve() == pathlib.Path.cwd().resolve():
        raise RunError(
            f"--out {out} is the current folder, which would be replaced as a whole. Run the command in another folder."
        )
    own = {path.relative_to(WEBAPP).parts[0] for path in WEBAPP.iterdir()} | {MODEL, DESCRIPTION}
    if ours and (foreign := sorted(path.name for path in out.iterdir() if path.name not in own)):
        raise RunError(
            f"{out} holds an older demo and also {', '.join(foreign)}, which would be lost. Choose another --out."
        )
    return out


def _is_current(path: pathlib.Path, description: dict) -> bool:
    """Returns whether the exported file exists and its description is the run's present one."""
    if not path.is_file():
        return False
    stored, current = (
        {**part, "version": None, "kmed_version": None} for part in (read_description(path), description)
    )
    return json.dumps(stored, sort_keys=True) == json.dumps(current, sort_keys=True)  # as text, NaN equals NaN


def _content(description: dict, title: str, level: float, size: int) -> dict:
    """Returns the values that index.html is filled with."""
    exclusive, names = get_task(description["task"]).exclusive, description["class_names"]
    kind = "tells which of {} classes a picture shows" if exclusive else "looks for {} findings in a picture"
    model = f"{_article(description['model'])} {description['model']}"
    packages = json.loads((WEBAPP / "litert" / "VERSION").read_text(encoding="utf-8"))["packages"]
    return {
        "title": title,
        "summary": f"{model} that {kind.format(len(names))}, and runs on this device.",
        "description": description,
        "multiclass": exclusive,
        "verdict": description["verdict"],
        "score": description["test_score"] and _describe_score(description["test_score"], level),
        "fit": _FITS[description["fit"]],
        "size": f"{size / 1e6:,.1f} MB",
        "litert": packages["@litertjs/core"]["version"],
    }


def _article(name: str) -> str:
    return "An" if name[0] in "aeio" else "A"


def _describe_score(score: dict, level: float) -> dict:
    """Returns the test score in words: its name, value, interval, split, and the pictures behind it."""
    name = words(score["name"])
    sizes = f"{score['num_images']:,} pictures in {score['num_clusters']:,} independent groups"
    basis = f"{sizes} (patients or photographs), which the interval resamples."
    value, low, high = (_number(score[key]) for key in ("value", "low", "high"))
    if score["num_clusters"] < FEW_CLUSTERS:
        basis += f" With fewer than {FEW_CLUSTERS} groups the interval is too narrow."
    return {
        "name": name[0].upper() + name[1:],
        "value": value,
        "interval": f"{100 * level:g} % interval {low} to {high}",
        "split": _SPLITS[score["split"]],
        "basis": basis,
    }


def _number(value) -> str:
    """Returns a score as text; null in metrics.json, or NaN, is "undefined"."""
    return "undefined" if value is None or value != value else f"{value:.3f}"


def _fill(name: str, **content) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(WEBAPP),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template(name).render(**content)


def _hash(folder: pathlib.Path) -> str:
    """Returns a hash of the names and contents of all files: the version of the offline copy."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()} {digest_of(path)}\n".encode())
    return digest.hexdigest()[:16]
