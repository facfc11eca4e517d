"""The commands that put a finished run to use: export, predict, serve, benchmark and demo."""

import shlex

import click
from click.core import ParameterSource

from kmed.cli.shared import DATA, FORMAT, PATH, QUANTIZE, THREADS, one_line_errors, open_finished
from kmed.errors import ConfigError, DataError
from kmed.files import replacing
from kmed.formats.registry import check_format, either, exported_formats


@click.command()
@click.argument("run_folder", metavar="RUN", type=PATH)
@click.option("--format", "format", default="tflite", show_default=True, help=f"{either(exported_formats())}.")
@QUANTIZE
@DATA
@click.option(
    "--tolerance",
    type=float,
    default=0.5,
    show_default=True,
    metavar="POINTS",
    help="Largest loss allowed, in hundredths of accuracy, or of macro AUROC for multilabel runs.",
)
@click.option(
    "--pictures",
    "num_pictures",
    type=int,
    default=200,
    show_default=True,
    metavar="N",
    help="Number of training images that calibrate int8.",
)
@THREADS
@click.option("--append", metavar="CSV", help="Add a row to a table of exports, even if the export is refused.")
def export(run_folder, format, quantize, **arguments):
    """Write the model for phones and other programs; the file is kept only if it agrees with the model.

    The file takes raw 0-255 pixels and gives calibrated probabilities; labels, thresholds and the test score are
    stored with it. It is loaded again and compared with the Keras model on the test images of the run. RUN/export
    holds the file and a JSON with the results. An export that loses more than the tolerance is refused and removed,
    and the nearest one that passes is named.

    \b
    Examples:
      kmed export saved_models/latest
      kmed export saved_models/blood --format tflite --quantize int8
      kmed export saved_models/blood --format savedmodel
      kmed export saved_models/blood --format onnx
    """
    with one_line_errors():
        check_format(format, quantize)
        open_finished(run_folder)
        from kmed.deployment import export_record, exporting

        exported = exporting.export(run_folder, format, quantize, **arguments)
        click.echo(export_record.describe_record(exported.record))
        click.echo(f"Made: {exported.path}")


@click.command()
@click.argument("run_folder", metavar="RUN", type=PATH, required=False)
@click.argument("sources", nargs=-1, metavar="[IMAGE...]")
@click.option("--manifest", metavar="FILE", help="A list of images: one path per line, or a CSV with a column path.")
@click.option("--shard", metavar="I/N", help="Only part I of N of the images, such as 3/8.")
@click.option("--merge", metavar="FILE", type=PATH, help="Join the parts of FILE that --shard has written.")
@FORMAT
@QUANTIZE
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON per image.")
@click.option("--csv", "as_csv", is_flag=True, help="Print a CSV table with one column per class.")
@click.option("--out", metavar="FILE", type=PATH, help="Write to this file, whole or not at all.  [the terminal]")
@click.option(
    "--by", metavar="WHAT", help="One answer per case: folder, regex:...(...) or FILE.csv:COLUMN.  [one per image]"
)
@click.option("--explain", metavar="DIR", type=PATH, help="Write a PNG per image that shows what supports its class.")
@click.option(
    "--dicom-sr", metavar="DIR", type=PATH, help="Write a DICOM structured report per image, for DICOM files."
)
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Images per step.")
def predict(run_folder, sources, merge, format, quantize, as_json, as_csv, out, **arguments):
    """Classify images: files, folders with everything below them, or globs.

    The answer for each image has the class, or the findings above their thresholds; calibrated probabilities; the
    conformal prediction set, if it differs; and a warning if the image is unlike the training data (a photograph, a
    blank, another kind of image), in which case the answer means nothing. A file that cannot be read is named, and
    the others are still classified; the exit code is then 1.

    With --dicom-sr, each report names the model, its version and the probability of each class, and belongs to the
    patient and the study of the image (pip install kmed[dicom]). All images must be DICOM files.

    With --by, the images of a folder, of what a regular expression captures in their paths, or of a value in a table
    (with a column path) give one answer: the mean of their calibrated logits or, for findings, the largest, as chosen
    by evaluate.case.

    An archive can be predicted in parts, one after another or at once, on one machine or as an array of jobs:
    --shard 3/8 --out archive.csv writes archive-3-of-8.csv, and at the end --merge archive.csv joins the eight.

    \b
    Examples:
      kmed predict saved_models/latest smear.jpeg
      kmed predict saved_models/blood incoming/ --csv --out incoming.csv
      kmed predict saved_models/xrays 'study/**/*.dcm' --json
      kmed predict saved_models/blood smear.jpeg --explain looked_at
      kmed predict saved_models/xrays study/ --dicom-sr reports
      kmed predict saved_models/xrays incoming/ --by incoming/list.csv:patient_id
      kmed predict saved_models/blood incoming/ --format tflite --quantize int8
      kmed predict saved_models/xrays --manifest archive.txt --csv --out archive.csv --shard 3/8
      kmed predict --merge archive.csv
    """
    with one_line_errors():
        if merge is not None:
            _merge(merge)
            return
        if run_folder is None:
            raise ConfigError("Give the folder of a run and what to predict: kmed predict RUN IMAGE...")
        if as_json and as_csv:
            raise ConfigError("--json and --csv are two formats of the same answers: give only one of them.")
        check_format(format, quantize)
        run = open_finished(run_folder)
        from kmed.deployment import classify, shards

        if arguments["shard"] is not None:
            if out is None:
                raise ConfigError("--shard needs --out, beside which its part is written.")
            out = shards.shard_path(out, arguments["shard"])
        stream = classify.classify_files(run_folder, sources, format=format, quantize=quantize, **arguments)
        counts = {"all": 0, "broken": 0}
        counted = _counted(stream, counts)
        if as_csv:
            lines = classify.as_csv(counted, run.read_classes().class_names)
        else:
            lines = (classify.as_json if as_json else classify.as_text)(counted)
        _write(lines, out)
        if counts["broken"]:
            where = "above" if out is None else f"in {out}"
            raise DataError(
                f"{counts['broken']} of {counts['all']} pictures could not be read. They are named {where}."
            )


def _merge(out) -> None:
    """Joins the parts of a file; any other option or argument is refused, since it would have no effect."""
    context = click.get_current_context()
    given = [name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if others := [name for name in given if name != "merge"]:
        raise ConfigError(f"--merge only joins parts that are already there. Received, too: {', '.join(others)}.")
    from kmed.deployment import shards

    click.echo(f"Made: {shards.merge_shards(out)}")


def _counted(stream, counts: dict):
    """Yields the answers, counting their pictures and those with an error."""
    for answer in stream:
        counts["all"] += answer.pictures or 1
        counts["broken"] += bool(answer.error)
        yield answer


def _write(lines, out) -> None:
    if out is None:
        for line in lines:
            click.echo(line)
        return
    with (
        replacing(out) as temporary,
        temporary.open(
            "w",
            encoding="utf-8",
            errors="surrogateescape",  # file names may contain any bytes
        ) as file,
    ):
        file.writelines(f"{line}\n" for line in lines)
    click.echo(f"Made: {out}")


@click.command()
@click.argument("run_folder", metavar="RUN", type=PATH)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address; 0.0.0.0 is open to other machines.")
@click.option("--port", type=int, default=8000, show_default=True, metavar="N", help="The port; 0 is any free one.")
@FORMAT
@QUANTIZE
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Most images per step.")
@click.option("--max-body", type=int, default=32, show_default=True, metavar="MB", help="Largest request.")
@click.option("--max-pixels", type=int, default=50, show_default=True, metavar="MILLION", help="Largest image.")
@click.option("--max-pictures", type=int, default=16, show_default=True, metavar="N", help="Images per request.")
@click.option("--max-queue", type=int, default=64, show_default=True, metavar="N", help="Requests at a time; then 429.")
@click.option(
    "--timeout",
    type=float,
    default=30.0,
    show_default=True,
    metavar="S",
    help="Seconds for receiving a request, and again for answering it.",
)
@click.option(
    "--token-file", metavar="FILE", type=PATH, help="Clients must send the token in it.  [KMED_TOKEN, else no token]"
)
def serve(run_folder, **arguments):
    """Answer over HTTP: POST /v1/predict takes JPEG, PNG, TIFF and DICOM, one image or a form with several.

    The answers are those of kmed predict --json. GET /v1/model gives the classes, thresholds and scores; /healthz,
    /metrics (Prometheus), /docs and /openapi.json are there too. Images of several requests go through the model
    together. Images stay in memory, and neither they nor names nor answers are logged. SIGTERM or Ctrl-C ends the
    service once it has answered what it has received.

    \b
    Needs: pip install "kmed[serve]"
    Examples:
      kmed serve saved_models/latest
      kmed serve saved_models/blood --port 9000 --format onnx
      kmed serve saved_models/xrays --host 0.0.0.0 --token-file token.txt
      curl --data-binary @smear.jpeg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/v1/predict
    """
    with one_line_errors():
        from kmed.deployment import serving

        serving.serve(run_folder, **arguments)


@click.command()
@click.argument("run_folder", metavar="RUN", type=PATH)
@click.option(
    "--format", "candidates", multiple=True, metavar="FORMAT[:KIND]", help="Only these, such as tflite:int8.  [all]"
)
@click.option("--batch", "batches", multiple=True, type=int, metavar="N", help="Images per call; repeatable.  [1, 32]")
@THREADS
@click.option("--seconds", type=float, default=2.0, show_default=True, metavar="S", help="How long to measure each.")
@DATA
@click.option("--append", metavar="CSV", help="Add the rows to a table of benchmarks.")
def benchmark(run_folder, candidates, batches, **arguments):
    """Measure the model in every format: latency, images per second, peak memory and size.

    Each format is measured in its own process; one that has not been exported yet is exported for this and removed
    afterwards. The table is stored as RUN/benchmark.csv.

    \b
    Examples:
      kmed benchmark saved_models/latest
      kmed benchmark saved_models/blood --format tflite --format tflite:int8 --format onnx --threads 2 --batch 1
    """
    with one_line_errors():
        pairs = [tuple(name.split(":", 1)) if ":" in name else (name, "none") for name in candidates]
        for pair in pairs:
            check_format(*pair)
        open_finished(run_folder)
        from kmed.deployment import benchmarking

        table = benchmarking.benchmark(run_folder, pairs or None, batches=batches or None, **arguments)
        click.echo(benchmarking.describe_table(table))


@click.command()
@click.argument("run_folder", metavar="RUN", type=PATH)
@click.option("--out", metavar="DIR", type=PATH, required=True, help="The output folder; an older demo is replaced.")
@QUANTIZE
@DATA
def demo(run_folder, out, quantize, data):
    """Write a static page that runs the model in the browser, on a phone or a desktop, even without a network.

    Its user picks, drops, pastes or photographs an image, which never leaves the device. Put the folder on any https
    host, or open it on this machine. The page uses the exported TFLite file of the run; if there is none, the model is
    exported and checked first.

    \b
    Examples:
      kmed demo saved_models/latest --out demo
      kmed demo saved_models/blood --out demo --quantize int8
      python -m http.server --directory demo      # then open http://localhost:8000
    """
    with one_line_errors():
        check_format("tflite", quantize)
        open_finished(run_folder)
        from kmed.deployment.demo_page import write_demo

        folder = write_demo(run_folder, out, quantize=quantize, data=data)
        click.echo(
            f"Made: {folder}. Look at it: python -m http.server --directory {shlex.quote(str(folder))}, then "
            "http://localhost:8000"
        )
