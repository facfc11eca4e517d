"""The command line: read the arguments, call one function, turn an error into one line."""

import contextlib
import pathlib
import sys

import click

import kmed
from kmed.errors import ConfigError, KmedError, suggest
from kmed.progress import configure, say

# The demo pictures are small and few, and want a longer training on a smaller size than the defaults.
DEMO_CONFIG = pathlib.Path(__file__).with_name("demo.yaml")

PATH = click.Path(path_type=pathlib.Path)

# Flag of `kmed train` -> setting. `--set` reaches every other one.
FLAGS = {
    "task": "task",
    "seed": "seed",
    "model": "model.name",
    "weights": "model.weights",
    "data": "data.path",
    "image_size": "data.image_size",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "lr": "train.learning_rate",
}


class Commands(click.Group):
    """A group that lists its commands in the order of work, and names the nearest one to a misspelt one."""

    def list_commands(self, ctx):
        """Returns the commands' names in the order they were added."""
        return list(self.commands)

    def resolve_command(self, ctx, args):
        """Finds a command, or says which one is near."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            ctx.fail(f"There is no command {args[0]!r}.{suggest(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


@contextlib.contextmanager
def one_line_errors():
    """Turns kmed's errors, a full disk and Ctrl-C into one line and an exit code."""
    try:
        yield
    except KmedError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:  # a full disk or a forbidden folder, met outside kmed's own writing
        click.echo(f"Error: {error.strerror or error}: {error.filename or 'no file named'}.", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        click.echo("Interrupted. A run that has finished an epoch goes on by: kmed train --resume RUN", err=True)
        sys.exit(130)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(kmed.__version__, prog_name="kmed")
@click.option("--quiet", "-q", is_flag=True, help="Say nothing but results and errors.")
def main(quiet):
    """Medical image classification: from a folder of pictures to an honestly judged model.

    \b
    Examples:
      kmed train                                   # ResNet-18 on built-in demo data
      kmed train --config configs/blood_cells.yaml --data data/blood_cells
      kmed evaluate saved_models/latest
    """
    configure(quiet)


@main.command()
@click.option("--model", metavar="NAME", help="A network; `kmed models` lists them.  [resnet18]")
@click.option("--task", metavar="TASK", help="multiclass or multilabel.  [multiclass]")
@click.option("--data", metavar="PATH", help="A folder, a CSV or an npz.  [built-in demo data]")
@click.option("--config", metavar="FILE", help="A YAML file of settings, such as configs/blood_cells.yaml.")
@click.option("--epochs", metavar="N", help="How often the training pictures are seen.  [10]")
@click.option("--batch-size", metavar="N", help="Pictures a step.  [32]")
@click.option("--image-size", metavar="HxW", help="Height and width that pictures are resized to.  [120x160]")
@click.option("--lr", metavar="RATE", help="Peak learning rate of AdamW.  [0.001]")
@click.option("--seed", metavar="N", help="Of the split, the weights and every draw.  [0]")
@click.option("--weights", metavar="SOURCE", help="imagenet, a safetensors file, or an earlier run.  [random]")
@click.option(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    help="Any setting (augment.level=strong); repeatable.",
)
@click.option(
    "--out",
    metavar="DIR",
    type=PATH,
    help="The run folder.  [saved_models/DATA-MODEL-TIME]",
)
@click.option(
    "--resume",
    metavar="RUN",
    type=PATH,
    help="Go on with an interrupted run, with its own settings.",
)
@click.option("--append", metavar="CSV", help="Add the run's row to a table of results.")
@click.option("--quiet", "-q", is_flag=True, help="Say nothing but results and errors.")
def train(config, settings, out, resume, append, quiet, **flags):
    """Train a model, judge it once on the test split, and leave a run folder.

    Settings: the defaults, changed by --config, changed by --set and the flags.

    \b
    Examples:
      kmed train --model resnet18 --task multiclass
      kmed train --config configs/blood_cells.yaml --data data/blood_cells --model efficientnetb0
      kmed train --data my_pictures --set data.group='regex:(patient\\d+)' --set augment.level=medium
      kmed train --resume saved_models/latest
    """
    if quiet:
        configure(True)
    overrides = [*settings, *((FLAGS[name], value) for name, value in flags.items() if value is not None)]
    with one_line_errors():
        from kmed.config import load_config
        from kmed.runtime import load_backend

        if resume is not None and (config or overrides or out):
            raise ConfigError("--resume goes on with the run's own settings; give no others beside it.")
        settings = load_config(config, overrides) if resume is None else None
        if settings is not None and config is None and settings.data.path is None:
            settings = load_config(DEMO_CONFIG, overrides)
        load_backend()
        from kmed import results
        from kmed import train as training

        run = training.resume(resume) if resume is not None else training.fit(settings, out=out)
        click.echo(run.summary.read_text(encoding="utf-8"))
        click.echo(f"Run folder: {run.folder}")
        if append:
            results.append_result(run, append)


@main.command()
@click.argument("run", type=PATH)
@click.option("--split", default="test", show_default=True, help="Any split of the run's data: val, test_simple, ...")
@click.option("--data", metavar="PATH", help="Where the pictures are now, if they have moved.")
@click.option("--rescore", is_flag=True, help="Judge again from the stored predictions, and replace the run's scores.")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="With --rescore: a setting of evaluate.")
@click.option("--append", metavar="CSV", help="Add the run's row to a table of results.")
def evaluate(run, split, data, rescore, settings, append):
    """Score a finished run on one of its splits, predicted afresh.

    With --rescore no picture is read: predictions.csv is judged again, by other settings of evaluate (thresholds,
    sensitivity, coverage, num_resamples, level).

    \b
    Examples:
      kmed evaluate saved_models/latest
      kmed evaluate saved_models/blood --split test_simple
      kmed evaluate saved_models/blood --append results/blood_cells.csv
      kmed evaluate saved_models/xrays --rescore --set evaluate.thresholds=youden
    """
    with one_line_errors():
        if rescore and (data or split != "test"):
            raise ConfigError("--rescore judges the stored predictions of val and test: give no --data or --split.")
        if settings and not rescore:
            raise ConfigError("--set goes with --rescore; a run is else judged by its own settings.")
        from kmed.runs import finished_run
        from kmed.runtime import load_backend

        finished_run(run)
        load_backend()
        from kmed import evaluation, results
        from kmed.summary import describe

        if rescore:
            click.echo(results.rescore(run, settings).summary.read_text(encoding="utf-8"))
        else:
            click.echo(describe(evaluation.judge(run, split, data=data), split))
        if append:
            results.append_result(finished_run(run), append)


@main.command()
def models():
    """List the networks: parameters, multiply-adds, input size, ImageNet weights.

    \b
    Example:
      kmed models
    """
    with one_line_errors():
        from kmed.models import model_facts

        facts = model_facts()
        for column, unit, size in (
            ("trainable_parameters", "M", 1e6),
            ("total_parameters", "M", 1e6),
            ("multiply_adds", "G", 1e9),
        ):
            facts[column] = [f"{value / size:.2f} {unit}" for value in facts[column]]
        click.echo(facts.to_string(index=False))


@main.group(cls=Commands)
def data():
    """Look at, draw, pack and download data.

    \b
    Examples:
      kmed data show data/blood_cells
      kmed data demo my_demo
    """


@data.command()
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--seed", default=0, show_default=True, help="Of every draw.")
def demo(folder, seed):
    """Draw the built-in demo data: blood smears of four cell types.

    \b
    Example:
      kmed data demo my_demo
    """
    with one_line_errors():
        from kmed.data.demo import draw_demo

        draw_demo(folder, seed=seed)
        click.echo(f"Drawn: {folder}. Train on it: kmed train --data {folder}")


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
        from kmed.data.pack import pack as pack_table

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


if __name__ == "__main__":
    main()
