"""The commands that judge: evaluate, report, compare and explain."""

import click

from kmed.cli import deploy
from kmed.cli.shared import PATH, add_rows, check_table, one_line_errors
from kmed.errors import ConfigError


@click.command()
@click.argument("run", type=PATH)
@click.option("--split", default="test", show_default=True, help="Any split of the run's data: val, test_simple, ...")
@deploy.FORMAT
@deploy.QUANTIZE
@click.option("--data", metavar="PATH", help="Where the pictures are now, if they have moved.")
@click.option("--rescore", is_flag=True, help="Judge again from the stored predictions, and replace the run's scores.")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="With --rescore: a setting of evaluate.")
@click.option("--append", metavar="CSV", help="Add the run's row to a table of results.")
def evaluate(run, split, format, quantize, data, rescore, settings, append):
    """Score a finished run on one of its splits, predicted afresh, by its Keras model or an exported file.

    With --rescore no picture is read: predictions.csv is judged again, by other settings of evaluate (thresholds,
    sensitivity, coverage, num_resamples, level).

    \b
    Examples:
      kmed evaluate saved_models/latest
      kmed evaluate saved_models/blood --split test_simple
      kmed evaluate saved_models/blood --format tflite --quantize int8
      kmed evaluate saved_models/blood --append results/blood_cells.csv
      kmed evaluate saved_models/xrays --rescore --set evaluate.thresholds=youden
    """
    with one_line_errors():
        if rescore and (data or split != "test" or (format, quantize) != ("keras", "none")):
            raise ConfigError(
                "--rescore judges the stored predictions of val and test: give no --data, --split, --format "
                "or --quantize."
            )
        if append and format != "keras":
            raise ConfigError("--append adds the run's row, which is the Keras model's: give no --format beside it.")
        if settings and not rescore:
            raise ConfigError("--set goes with --rescore; a run is else judged by its own settings.")
        from kmed.runs import finished_run
        from kmed.runtime import load_backend

        check_table(append, {finished_run(run).read_config().task})
        load_backend()
        from kmed.evaluation import result_rows, run_evaluation
        from kmed.evaluation.summary import describe

        if rescore:
            click.echo(run_evaluation.rescore(run, settings).summary.read_text(encoding="utf-8"))
        else:
            judged = run_evaluation.judge(run, split, data=data, format=format, quantize=quantize)
            click.echo(describe(judged, split))
        if append:
            result_rows.append_result(finished_run(run), append)
        if rescore:
            draw_page(finished_run(run))


@click.command()
@click.argument("run", type=PATH)
@click.option("--data", metavar="PATH", help="Where the pictures are now, if they have moved.")
def report(run, data):
    """Draw a finished run's report.html anew: one page that needs nothing else, to read, print and pass on.

    `kmed train` draws it too; so does `kmed evaluate --rescore`, and `kmed compare` one of all its runs.

    \b
    Examples:
      kmed report saved_models/latest
      kmed report saved_models/blood --data /mnt/blood_cells
    """
    with one_line_errors():
        from kmed.runs import finished_run
        from kmed.runtime import load_backend

        finished = finished_run(run)
        load_backend()
        draw_page(finished, data=data)


def draw_page(run, **options):
    """Writes a run's page and says where it is; last of all, so that nothing is lost where it fails."""
    from kmed.report.run_page import write_report

    click.echo(f"Report: {write_report(run, **options)}")


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=PATH)
@click.option("--out", metavar="DIR", type=PATH, help="The folder that is made.  [saved_models/comparison-TIME]")
@click.option("--split", default="test", show_default=True, help="The split that is compared: test or val.")
@click.option("--different-pictures", is_flag=True, help="Compare runs that were scored on different pictures too.")
@click.option("--append", metavar="CSV", help="Add the runs' rows to a table of results; rows it holds are skipped.")
def compare(runs, out, split, different_pictures, append):
    """Compare finished runs on the same test pictures: a table, figures, and which pairs the data tell apart.

    \b
    Examples:
      kmed compare saved_models/blood_resnet18 saved_models/blood_vit
      kmed compare saved_models/nih_* --out comparison --append results/nih_cxr.csv
    """
    with one_line_errors():
        from kmed.runs import default_folder, judged_run
        from kmed.runtime import load_backend

        check_table(append, {judged_run(run).read_config().task for run in runs})
        load_backend()
        show_comparison(runs, out or default_folder("comparison"), different_pictures=different_pictures, split=split)
        if append:
            add_rows(runs, append)


def show_comparison(runs, folder, **options) -> None:
    """Compares runs, writes the comparison's files into a folder, and prints its table."""
    from kmed.evaluation import comparison as comparing
    from kmed.report.comparison_page import write_comparison

    comparison = comparing.compare(runs, **options)
    made = [*comparing.write_files(comparison, folder), write_comparison(comparison, folder)]
    click.echo((folder / "comparison.md").read_text(encoding="utf-8"))
    for file in made:
        click.echo(f"Made: {file}")


@click.command()
@click.argument("run", type=PATH)
@click.argument("images", metavar="[IMAGE]...", nargs=-1, type=PATH)
@click.option("--class", "class_name", metavar="NAME", help="The class to explain.  [each picture's most probable one]")
@click.option("--data", metavar="PATH", help="Where the run's pictures are now, if they have moved.")
@click.option("--out", metavar="DIR", type=PATH, help="Where the maps go.  [RUN/figures/explain]")
def explain(run, images, class_name, data, out):
    """Show which part of a picture speaks for a class: Grad-CAM, or the relevance of a vit's patches.

    Without IMAGE: the test pictures that the model is surest of, wrongly and rightly, and some drawn at random.

    \b
    Examples:
      kmed explain saved_models/latest
      kmed explain saved_models/blood smear.jpeg --class MONOCYTE --out looked_at
    """
    with one_line_errors():
        from kmed.runs import finished_run
        from kmed.runtime import load_backend

        finished_run(run)
        load_backend()
        from kmed.report.explain_sheet import explain_run

        for path in explain_run(run, images, class_name=class_name, data=data, out=out):
            click.echo(f"Made: {path}")
