"""The commands of `kmed data`: show, audit, draw, pack and download data, and find wrong labels."""

import click

from kmed.cli.shared import PATH, Commands, one_line_errors
from kmed.data.download import SOURCES


@click.group(cls=Commands)
def data():
    """Show, audit, draw, pack and download data, and find wrong labels.

    \b
    Examples:
      kmed data show data/blood_cells
      kmed data demo my_demo
    """


@data.command()
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--task", default="multiclass", show_default=True, help="multiclass: smears; multilabel: chest X-rays.")
@click.option("--seed", default=0, show_default=True, help="Random seed for the drawing.")
def demo(folder, task, seed):
    """Draw the built-in demo data: blood smears of four cell types, or chest X-rays of 14 findings.

    \b
    Examples:
      kmed data demo my_demo
      kmed data demo my_xrays --task multilabel
    """
    with one_line_errors():
        from kmed.data.demo.sets import draw_demo

        draw_demo(folder, seed=seed, task=task)
        click.echo(f"Drawn: {folder}. Train on it: kmed train --task {task} --data {folder}")


def table_options(command):
    """Adds the options that say what the data are."""
    options = [
        click.option("--config", metavar="FILE", help="A YAML file whose data section is used."),
        click.option(
            "--set",
            "settings",
            metavar="KEY=VALUE",
            multiple=True,
            help="Any setting (data.group=patient_id); repeatable.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@data.command()
@click.argument("path", metavar="DATA")
@click.option(
    "--out",
    metavar="DIR",
    type=PATH,
    help="The output folder.  [NAME_shown]",
)
@table_options
def show(path, out, config, settings):
    """Count classes, groups and splits; draw a contact sheet and a bar chart of the splits.

    \b
    Example:
      kmed data show data/blood_cells --out blood_cells_shown
    """
    with one_line_errors():
        from kmed.data.show import show_data

        table, files = show_data(path, out=out, config=config, settings=settings)
        click.echo(table.counts().to_string())
        for file in files:
            click.echo(f"Made: {file}")


@data.command()
@click.argument("path", metavar="DATA")
@click.option("--out", metavar="DIR", type=PATH, help="The output folder.  [NAME_audit]")
@click.option("--splits", metavar="NAMES", help="The splits to audit, such as train,test.  [all]")
@click.option("--jobs", metavar="N", type=int, help="How many processes share the work.  [one per core]")
@table_options
def audit(path, out, splits, jobs, config, settings):
    """Find copies, overlapping photographs, leaks between splits, contradictory labels and broken files.

    Images are compared by what they show: the audit finds rotated, mirrored, recompressed and shifted copies, and
    photographs that share a spot. Given groups are compared with the found ones, but not used to find them. The sides
    are the splits that come with the data (folders, a split column, data.splits); no new split is drawn. A group that
    only test splits share (test and test_simple) is not a leak.

    Labels contradict each other where two images are the same exposure. What may be the same is listed as in doubt;
    other exposures, such as a patient's follow-ups, may differ. Near-duplicates in two given groups are listed across
    groups: the two may be one patient.

    The output folder holds audit.json, worst_pairs.png, pairs.csv (every pair found) and groups.csv, which training
    takes as data.group; audit all splits for this. If the data have groups (patients), take groups_with_told.csv,
    which keeps both kinds together.

    Until the audit is finished, what has been computed is kept in the folder unfinished in the output folder (0.1 MB
    per image). An audit that was interrupted goes on from there when the same command is given again.

    \b
    Examples:
      kmed data audit my_pictures --out my_audit
      kmed train --data my_pictures --set data.group=my_audit/groups.csv
      kmed data audit data/blood_cells --splits train,test
      kmed data audit data/nih_cxr_sample
    """
    with one_line_errors():
        from kmed.data.audit.report import audit_data, summarize

        found, files = audit_data(path, out=out, splits=splits, jobs=jobs, config=config, settings=settings)
        click.echo(summarize(found))
        for file in files:
            click.echo(f"Made: {file}")


@data.command()
@click.argument("folder", metavar="CROSSVAL", type=PATH)
@click.option("--out", metavar="DIR", type=PATH, help="The output folder.  [CROSSVAL/labels]")
@click.option("--data", metavar="PATH", help="Where the images are now, if they have moved.")
@click.option(
    "--cut",
    metavar="CUT",
    default="auto",
    show_default=True,
    help="auto: as many labels as are likely to be wrong; or a probability below which a label is listed.",
)
def labels(folder, **arguments):
    """List the labels that look wrong, judged by models that have not seen their pictures.

    CROSSVAL is what `kmed crossval` made. The output folder holds labels.csv, the most doubtful label first, and
    labels.png, which shows the first pictures. A cluster whose pictures share their labels, such as the copies of one
    photograph, is one row; in a cluster with several labels each picture is one. Edit the column label: class names,
    with | between several, or ? to leave the pictures out. Rows that are not edited change nothing. Training takes the
    file as data.corrections.

    \b
    Examples:
      kmed data labels saved_models/folds
      kmed train --data my_pictures --set data.corrections=saved_models/folds/labels/labels.csv
      kmed data labels saved_models/folds --cut 0.1 --out doubtful
    """
    with one_line_errors():
        from kmed.report.label_sheet import find_label_errors

        rows, files = find_label_errors(folder, **arguments)
        click.echo(rows.head(20).to_string(index=False) if len(rows) else "No label looks wrong.")
        for file in files:
            click.echo(f"Made: {file}")


@data.command()
@click.argument("path", metavar="DATA")
@click.argument("out", metavar="OUT.npz", type=PATH)
@click.option("--image-size", metavar="HxW", required=True, help="Height and width to resize to.")
@table_options
def pack(path, out, image_size, config, settings):
    """Pack images, labels, groups and splits into one npz file, for training without TensorFlow.

    \b
    Example:
      kmed data pack data/blood_cells blood_cells.npz --image-size 120x160
    """
    with one_line_errors():
        from kmed.data.prepare import pack_data

        table, file = pack_data(path, out, image_size=image_size, config=config, settings=settings)
        click.echo(table.counts().to_string())
        click.echo(f"Packed: {file}. Train on it: kmed train --data {file}")


@data.command()
@click.argument("name", type=click.Choice(list(SOURCES)))
@click.argument("folder", metavar="DIR", type=PATH)
def download(name, folder):
    """Download a public data set from Kaggle; its size and licence are printed first.

    \b
    Example:
      kmed data download blood-cells data/blood_cells
    """
    with one_line_errors():
        from kmed.data.download import download_data

        download_data(name, folder)
        click.echo(f"Downloaded: {folder}")
