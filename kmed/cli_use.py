"""The commands for a finished run in use: export, predict, benchmark, demo."""

import click

from kmed.commands import PATH, one_line_errors

FORMAT = click.option(
    "--format",
    "format",
    default="keras",
    show_default=True,
    metavar="FORMAT",
    help="keras, savedmodel, tflite or onnx.",
)
QUANTIZE = click.option(
    "--quantize", default="none", show_default=True, metavar="KIND", help="Of tflite: none, float16, dynamic or int8."
)
THREADS = click.option("--threads", type=int, metavar="N", help="Processor cores that may be used.  [all]")
DATA = click.option("--data", metavar="PATH", help="Where the run's pictures are now, if they have moved.")


@click.command()
@click.argument("run", type=PATH)
@click.option("--format", "format", default="tflite", show_default=True, help="savedmodel, tflite or onnx.")
@QUANTIZE
@DATA
@click.option(
    "--tolerance",
    type=float,
    default=0.5,
    show_default=True,
    metavar="POINTS",
    help="Hundredths of accuracy, or of the macro AUROC of multilabel runs, that may be lost.",
)
@click.option(
    "--pictures", type=int, default=200, show_default=True, metavar="N", help="Training pictures that calibrate int8."
)
@THREADS
@click.option("--append", metavar="CSV", help="Add a row, also where the export is refused, to a table of exports.")
def export(run, format, quantize, data, tolerance, pictures, threads, append):
    """Write the model for phones and other programs, and keep the file only if it says the same.

    The file takes raw 0-255 pixels and gives calibrated probabilities; labels, thresholds and the test score
    travel with it. It is loaded back and compared with the Keras model on the run's test pictures: RUN/export holds
    the file and a JSON of what was found. An export that loses more than the tolerance is refused and removed, and
    the nearest one that holds is named.

    \b
    Examples:
      kmed export saved_models/latest
      kmed export saved_models/blood --format tflite --quantize int8
      kmed export saved_models/blood --format savedmodel
      kmed export saved_models/blood --format onnx
    """
    with one_line_errors():
        from kmed.runs import finished_run
        from kmed.runtime import load_backend
        from kmed.serving import check_format

        finished_run(run)
        check_format(format, quantize)
        load_backend()
        from kmed import exporting

        try:
            exported = exporting.export(
                run, format, quantize, data=data, tolerance=tolerance, num_pictures=pictures, threads=threads
            )
        except exporting.ExportRefused as refused:
            if append:
                exporting.append_record(refused.record, append)
            raise
        click.echo(exporting.describe_record(exported.record))
        click.echo(f"Made: {exported.path}")
        if append:
            exporting.append_record(exported.record, append)


@click.command()
@click.argument("run", type=PATH)
@click.option(
    "--format", "names", multiple=True, metavar="FORMAT[:KIND]", help="Only these, such as tflite:int8.  [all]"
)
@click.option("--batch", "batches", multiple=True, type=int, metavar="N", help="Pictures a call; repeatable.  [1, 32]")
@THREADS
@click.option("--seconds", type=float, default=2.0, show_default=True, metavar="S", help="How long each is measured.")
@DATA
@click.option("--append", metavar="CSV", help="Add the rows to a table of benchmarks.")
def benchmark(run, names, batches, threads, seconds, data, append):
    """Measure the model in every format: latency, images a second, peak memory, size.

    Each format is measured in a process of its own; one that was not exported yet is made for it and removed. The
    table is stored as RUN/benchmark.csv.

    \b
    Examples:
      kmed benchmark saved_models/latest
      kmed benchmark saved_models/blood --format tflite --format tflite:int8 --format onnx --threads 2 --batch 1
    """
    with one_line_errors():
        from kmed.runs import finished_run
        from kmed.runtime import load_backend
        from kmed.serving import check_format

        finished_run(run)
        pairs = [tuple(name.split(":", 1)) if ":" in name else (name, "none") for name in names]
        for pair in pairs:
            check_format(*pair)
        load_backend()
        from kmed import benchmarking, results

        table = benchmarking.benchmark(
            run,
            pairs or benchmarking.CANDIDATES,
            batches=batches or benchmarking.BATCHES,
            threads=threads,
            seconds=seconds,
            data=data,
        )
        click.echo(benchmarking.describe_table(table))
        if append:
            results.append_rows(append, [table.iloc[[row]].astype(str) for row in range(len(table))])
