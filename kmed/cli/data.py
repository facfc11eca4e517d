"""The commands of `kmed data`: look at, audit, draw, pack and download data."""

import pathlib

import click

from kmed.cli.shared import PATH, Commands, one_line_errors
from kmed.progress import say


@click.group(cls=Commands)
def data():
    """Look at, audit, draw, pack and download data.

    \b
    Examples:
      kmed data show data/blood_cells
      kmed data demo my_demo
    """


@data.command()
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--task", default="multiclass", show_default=True, help="multiclass: smears; multilabel: chest X-rays.")
@click.option("--seed", default=0, show_default=True, help="Of every draw.")
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
    help="Where the pictures go.  [NAME_shown]",
)
@table_options
def show(path, out, config, settings):
    """Count classes, groups and splits; draw a contact sheet and the split's bar chart.

    \b
    Example:
      kmed data show data/blood_cells --out blood_cells_shown
    """
    with one_line_errors():
        from kmed.data.show import show as show_table

        table = split_table(path, config, settings)
        made = show_table(table, out or pathlib.Path(f"{table.name}_shown"))
        for file in made:
            click.echo(f"Made: {file}")


@data.command()
@click.argument("path", metavar="DATA")
@click.option("--out", metavar="DIR", type=PATH, help="Where the files go.  [NAME_audit]")
@click.option("--splits", metavar="NAMES", help="Only these of the data's own splits, such as train,test.  [all]")
@table_options
def audit(path, out, splits, config, settings):
    """Find copies, overlapping photographs, leaks between splits, contradictory labels and broken files.

    Pictures are compared by what they show: turned, mirrored and shifted copies are found, and photographs
    that share a spot. Told groups are compared with that, never used for it. The sides are the splits that
    the data bring (folders, a split column, data.splits); no split is drawn. Groups that only judging
    splits share (test and test_simple) are no leak.

    The folder gets audit.json, worst_pairs.png and groups.csv, which training takes; audit all splits for
    that. Where groups are told, take groups_with_told.csv, which keeps both together.

    \b
    Examples:
      kmed data audit my_pictures --out my_audit
      kmed train --data my_pictures --set data.group=my_audit/groups.csv
      kmed data audit data/blood_cells --splits train,test
      kmed data audit data/nih_cxr_sample --config configs/nih_cxr.yaml
    """
    with one_line_errors():
        from kmed.config import load_config
        from kmed.data.audit.leaks import audit as audit_table
        from kmed.data.audit.report import summarize, write_audit
        from kmed.data.prepare import open_table
        from kmed.data.splits import read_splits

        resolved = load_config(config, [*settings, ("data.path", path)])
        table = open_table(resolved)
        if resolved.data.splits is not None:
            table = read_splits(table, resolved.data.splits, fold=resolved.data.fold)
        names = [name.strip() for name in splits.split(",")] if splits else None
        found = audit_table(table, names, seed=resolved.seed)
        made = write_audit(found, out or pathlib.Path(f"{table.name}_audit"))
        click.echo(summarize(found))
        for file in made:
            click.echo(f"Made: {file}")


@data.command()
@click.argument("path", metavar="DATA")
@click.argument("out", metavar="OUT.npz", type=PATH)
@click.option("--image-size", metavar="HxW", required=True, help="Height and width to resize to.")
@table_options
def pack(path, out, image_size, config, settings):
    """Put pictures, labels, groups and splits into one npz file, for training without TensorFlow.

    \b
    Example:
      kmed data pack data/blood_cells blood_cells.npz --image-size 120x160
    """
    with one_line_errors():
        from kmed.config import load_config
        from kmed.data.readers.npz import pack as pack_table

        settings = (*settings, ("data.image_size", image_size))
        reading = load_config(config, settings).data
        table = split_table(path, config, settings)
        packed = pack_table(table, out, reading.image_size, fit=reading.fit, interpolation=reading.interpolation)
        click.echo(f"Packed: {packed}. Train on it: kmed train --data {packed}")


@data.command()
@click.argument("name", type=click.Choice(["blood-cells", "nih-sample"]))
@click.argument("folder", metavar="DIR", type=PATH)
def download(name, folder):
    """Download a public data set from Kaggle, saying its size and licence first.

    \b
    Example:
      kmed data download blood-cells data/blood_cells
    """
    with one_line_errors():
        from kmed.data.download import download as download_set

        download_set(name, folder)
        click.echo(f"Downloaded: {folder}")


def split_table(path, config, settings):
    """Returns the table of `path`, read, checked and split as the settings say."""
    from kmed.config import load_config
    from kmed.data.prepare import open_table, prepare_table

    resolved = load_config(config, [*settings, ("data.path", path)])
    table, _ = prepare_table(open_table(resolved), resolved)
    for note in table.notes:
        say(note)
    say("")
    click.echo(table.counts().to_string())
    return table
