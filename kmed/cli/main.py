"""The command line: read the arguments, call one function, turn an error into one line."""

import click

from kmed.cli import deploy, evaluate, train
from kmed.cli.data import data
from kmed.cli.shared import Commands
from kmed.progress import configure
from kmed.version import __version__


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="kmed")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but results and errors.")
def main(quiet):
    """Medical image classification: from a folder of images to an honestly judged model.

    \b
    Examples:
      kmed train                                   # ResNet-18 on built-in demo data
      kmed train --config configs/blood_cells.yaml --data data/blood_cells
      kmed evaluate saved_models/latest
    """
    configure(quiet)


for command in (
    train.train,
    train.sweep,
    train.tune,
    train.crossval,
    evaluate.evaluate,
    evaluate.recalibrate,
    evaluate.report,
    evaluate.compare,
    evaluate.ensemble,
    evaluate.explain,
    train.models,
    deploy.export,
    deploy.predict,
    deploy.serve,
    deploy.benchmark,
    deploy.demo,
    data,
):
    main.add_command(command)
