"""The commands that evaluate finished runs: evaluate, recalibrate, report, compare, ensemble and explain."""

import click

from kmed.cli.shared import (
    CLASS_MAP,
    COPIES,
    DATA,
    FORMAT,
    PATH,
    QUANTIZE,
    one_line_errors,
    open_finished,
    open_judged,
    print_comparison,
    print_report,
)


@click.command()
@click.argument("run_folder", metavar="RUN", type=PATH)
@click.option("--split", help="Any split of the data: val, test_simple, ...  [test; with --on all images]")
@FORMAT
@QUANTIZE
@click.option("--data", metavar="PATH", help="Where the images are now, if they have moved.")
@click.option("--rescore", is_flag=True, help="Score the stored predictions again, and replace the run's scores.")
@click.option("--on", metavar="DATA", help="Judge the run on other data: a folder, CSV or npz of somebody else's.")
@CLASS_MAP
@click.option("--name", help="With --on: the folder of the results, in RUN/external.  [the data's name]")
@COPIES
@click.option(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    help="With --rescore: a setting of evaluate. With --on: of data, how DATA are read.",
)
@click.option("--append", metavar="CSV", help="Add the run's row to a table of results.")
def evaluate(run_folder, split, rescore, **arguments):
    """Score a finished run on one of its splits, with new predictions of its Keras model or an exported file.

    With --on, the run is judged on somebody else's images, and its scores at home and there are set side by side, with
    intervals of the changes. The results are in RUN/external/NAME; the run's own scores stay as they are. Images that
    show what the run has learnt from are left out and named. Class names that differ are mapped with --map.

    With --rescore, no images and no weights are read: predictions.csv is scored again with other settings of evaluate
    (thresholds, sensitivity, cost_missed, cost_false, case, coverage, num_resamples, level).

    \b
    Examples:
      kmed evaluate saved_models/latest
      kmed evaluate saved_models/blood --split test_simple
      kmed evaluate saved_models/blood --format tflite --quantize int8
      kmed evaluate saved_models/blood --append results/blood_cells.csv
      kmed evaluate saved_models/blood --on other_hospital --map EOS=EOSINOPHIL --map debris=
      kmed evaluate saved_models/xrays --on other.csv --map names.yaml --set data.group=patient
      kmed evaluate saved_models/xrays --rescore --set evaluate.thresholds=youden
      kmed evaluate saved_models/xrays --rescore --set evaluate.thresholds=cost --set evaluate.cost_missed=5
    """
    with one_line_errors():
        from kmed.report.scoring import check_arguments

        check_arguments(split, rescore=rescore, **arguments)
        run = (open_judged if rescore else open_finished)(run_folder)
        from kmed.evaluation.summary import describe_assessment
        from kmed.report.scoring import evaluate_on, evaluate_run

        if arguments["on"] is not None:
            folder = evaluate_on(run_folder, split, **arguments).folder
            click.echo((folder / "summary.txt").read_text(encoding="utf-8"))
            click.echo(f"Results: {folder}")
            return
        assessment = evaluate_run(run_folder, split, rescore=rescore, **arguments)
        if rescore:
            click.echo(run.summary.read_text(encoding="utf-8"))
            print_report(run)
        else:
            click.echo(describe_assessment(assessment, split or "test"))


@click.command()
@click.argument("run_folder", metavar="RUN", type=PATH)
@DATA
@click.option("--checklist", is_flag=True, help="Also answer the items of CLAIM 2024 and TRIPOD+AI.")
def report(run_folder, **arguments):
    """Write the report.html of a finished run again: one self-contained page to read, print and pass on.

    `kmed train` and `kmed evaluate --rescore` write it too; `kmed compare` writes one page for all of its runs.

    With --checklist, the page and RUN/checklist.md hold the items of two check-lists for papers. kmed answers those
    that the run knows, and says where each answer stands; the others are left to be filled in. What is written into
    checklist.md is kept when the page is written again.

    \b
    Examples:
      kmed report saved_models/latest
      kmed report saved_models/latest --checklist
      kmed report saved_models/blood --data /mnt/blood_cells
    """
    with one_line_errors():
        run = open_judged(run_folder, unlabelled=True)
        from kmed.report.run_page import write_report

        write_report(run_folder, **arguments)
        print_report(run)
        if run.checklist.exists():
            click.echo(f"Check-lists: {run.checklist}")


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=PATH)
@click.option("--out", metavar="DIR", type=PATH, help="The output folder.  [saved_models/comparison-TIME]")
@click.option("--split", default="test", show_default=True, help="The split to compare: test or val.")
@click.option("--different-pictures", is_flag=True, help="Also compare runs that were scored on different images.")
@click.option("--append", metavar="CSV", help="Add the runs' rows to a table of results; rows it has are skipped.")
def compare(runs, append, **arguments):
    """Compare finished runs on the same test images: a table, figures, and which pairs the data tell apart.

    RUN may also be the folder of a cross-validation. Its pictures are of the split test, or of val if a test split was
    held out.

    \b
    Examples:
      kmed compare saved_models/blood_resnet18 saved_models/blood_vit
      kmed compare saved_models/nih_* --out comparison --append results/nih_cxr.csv
    """
    with one_line_errors():
        from kmed.runs import judged
        from kmed.runtime import load_backend

        for run in runs:
            judged(run)
        load_backend()
        from kmed.report import comparison_page

        _, files = comparison_page.compare(runs, append=append, **arguments)
        print_comparison(files)


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=PATH)
@click.option("--out", metavar="DIR", type=PATH, required=True, help="The output folder.")
@click.option(
    "--average",
    default="auto",
    show_default=True,
    metavar="OF",
    help="probabilities, logits, or auto: the one with the lower log loss on validation.",
)
@DATA
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="A setting of evaluate; repeatable.")
@click.option("--append", metavar="CSV", help="Add the ensemble's row to a table of results.")
def ensemble(runs, out, **arguments):
    """Combine finished runs into one model that predicts their mean, and score it as a run of its own.

    DIR is a run folder like any other; its model.keras holds all members. Every command for runs takes it.
    The members must have the same task, classes, pictures and image size. Test images must be new to every member.
    Validation images are judged by the members that were not trained on them, so the runs of a cross-validation are
    calibrated out of fold. After an interruption, the same command begins again.

    \b
    Examples:
      kmed ensemble saved_models/resnet18 saved_models/densenet121 saved_models/vit --out saved_models/three
      kmed ensemble saved_models/fold-* --out saved_models/five --average logits
      kmed ensemble saved_models/blood --set evaluate.views=flips --out saved_models/blood_flips
    """
    with one_line_errors():
        for run in runs:
            open_finished(run)
        from kmed.report import ensemble as combining

        made = combining.ensemble(runs, out, **arguments)
        click.echo(made.summary.read_text(encoding="utf-8"))
        click.echo(f"Run folder: {made.folder}")
        print_report(made)


@click.command()
@click.argument("run_folder", metavar="RUN", type=PATH)
@click.option(
    "--on",
    metavar="DATA",
    required=True,
    help="A folder, CSV or npz with local images and labels; with --method prior also without labels, or a list.",
)
@click.option("--out", metavar="DIR", type=PATH, required=True, help="The output folder.")
@click.option(
    "--method",
    default="labels",
    show_default=True,
    metavar="HOW",
    help="labels: calibration and thresholds from labels; prior: the shares of the classes, without labels.",
)
@click.option("--fit-fraction", type=float, help="Share of the groups that is fitted to.  [0.5; without labels all]")
@CLASS_MAP
@COPIES
@DATA
@click.option(
    "--set", "settings", metavar="KEY=VALUE", multiple=True, help="A setting of data or evaluate; repeatable."
)
@click.option("--seed", default=0, show_default=True, help="Of the split into two parts.")
def recalibrate(run_folder, **arguments):
    """Fit the calibration and thresholds of a finished run to a local sample of images.

    DIR is a run folder like any other, with the same model: predict, evaluate and export take it. The sample is split
    by group into a part that is fitted to (its validation split) and one that it is checked on (its test split), which
    gives the gain with its interval. A learning curve says how many labelled groups would have been enough.

    With --method prior, no labels of the first part are used: the shares of the classes are found from the model's
    probabilities (Saerens et al., 2002), on the assumption that nothing but the shares differs. The images may then
    have no labels at all: DATA is a folder of images, a CSV with a column of paths, or a text file with one path per
    line. All of them are fitted to, nothing checks the result, and the new run has no scores.

    \b
    Examples:
      kmed recalibrate saved_models/xrays --on our_xrays.csv --out saved_models/xrays_here
      kmed recalibrate saved_models/xrays --on ours --map Normal="No Finding" --out here --set data.group=patient
      kmed recalibrate saved_models/xrays --on our_xrays.csv --method prior --out saved_models/xrays_shifted
      kmed recalibrate saved_models/xrays --on archive/2024 --method prior --out saved_models/xrays_2024
    """
    with one_line_errors():
        open_finished(run_folder)
        from kmed.report import recalibrating

        made = recalibrating.recalibrate(run_folder, **arguments)
        click.echo(made.summary.read_text(encoding="utf-8"))
        click.echo(f"Run folder: {made.folder}")
        print_report(made)


@click.command()
@click.argument("run_folder", metavar="RUN", type=PATH)
@click.argument("files", metavar="[IMAGE]...", nargs=-1, type=PATH)
@click.option("--class", "class_name", metavar="NAME", help="The class to explain.  [each image's most probable one]")
@DATA
@click.option("--out", metavar="DIR", type=PATH, help="Where the maps go.  [RUN/figures/explain]")
@click.option("--seed", default=0, show_default=True, help="Decides which images are drawn at random.")
def explain(run_folder, files, **arguments):
    """Show which part of an image supports a class: Grad-CAM, or the relevance of the patches for a vit.

    Without IMAGE, it takes the test images with the most confident wrong and right answers, and some drawn at random.

    \b
    Examples:
      kmed explain saved_models/latest
      kmed explain saved_models/blood smear.jpeg --class MONOCYTE --out looked_at
    """
    with one_line_errors():
        open_finished(run_folder)
        from kmed.report.explain_sheet import explain_run

        for path in explain_run(run_folder, files, **arguments):
            click.echo(f"Made: {path}")
