"""The commands that train, and the one that lists what can be trained."""

import click

from kmed.cli.shared import PATH, one_line_errors, print_comparison, print_report
from kmed.errors import RunError
from kmed.progress import configure

# What `kmed train` and `kmed sweep` share, in the order of their help.
RECIPE = (
    click.option("--task", metavar="TASK", help="multiclass, multilabel, or auto: taken from the labels.  [auto]"),
    click.option("--data", metavar="PATH", help="A folder, a CSV or an npz.  [built-in demo data]"),
    click.option("--config", metavar="FILE", help="A YAML file of settings, such as configs/blood_cells.yaml."),
    click.option("--epochs", metavar="N", help="How often the training images are seen.  [10]"),
    click.option("--batch-size", metavar="N", help="Images per step.  [32]"),
    click.option("--image-size", metavar="HxW", help="Height and width that images are resized to.  [120x160]"),
    click.option("--lr", metavar="RATE", help="Peak learning rate of AdamW.  [0.001; fine-tuning: 0.0003]"),
    click.option("--seed", metavar="N", help="Random seed for the split, the weights and all other draws.  [0]"),
    click.option(
        "--weights", metavar="SOURCE", help="imagenet, a safetensors or PyTorch file, or an earlier run.  [random]"
    ),
    click.option(
        "--set",
        "settings",
        metavar="KEY=VALUE",
        multiple=True,
        help="Any setting (augment.level=strong); repeatable.",
    ),
)


def recipe_options(command):
    """Adds the options of RECIPE to a command."""
    for option in reversed(RECIPE):
        command = option(command)
    return command


@click.command()
@click.option("--model", metavar="NAME", help="A network; `kmed models` lists them.  [resnet18]")
@recipe_options
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
    help="Continue an interrupted run with its own settings.",
)
@click.option("--append", metavar="CSV", help="Add the run's row to a table of results.")
@click.option("--distributed", is_flag=True, help="Train with the other processes that Slurm or Open MPI has started.")
@click.option("--coordinator", metavar="HOST:PORT", help="Train with other processes: where the first one listens.")
@click.option("--num-processes", metavar="N", type=int, help="How many processes there are.")
@click.option("--process-id", metavar="I", type=int, help="Which of them this is, from 0.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but results and errors.")
def train(quiet, **arguments):
    """Train a model, score it once on the test split, and write a run folder.

    Settings are taken from the defaults, then from --config, then from --set and the other options.

    \b
    Examples:
      kmed train --model efficientnetlite0 --weights imagenet --epochs 8
      kmed train --model vit --task multilabel
      kmed train --config configs/blood_cells.yaml --data data/blood_cells
      kmed train --data my_pictures --set data.group='regex:(patient\\d+)' --set augment.level=medium
      kmed train --resume saved_models/latest
    """
    if quiet:
        configure(True)
    with one_line_errors(continue_with="kmed train --resume RUN"):
        from kmed.training import recipe

        run = recipe.train(**arguments, finished=_print_run)
        print_report(run)


def _print_run(run) -> None:
    """Prints the scores of a finished run, before its row is added and its report drawn, which might fail."""
    click.echo(run.summary.read_text(encoding="utf-8"))
    click.echo(f"Run folder: {run.folder}")


@click.command()
@click.option("--models", metavar="NAME,NAME,...", help="The networks; `kmed models` lists them.")
@recipe_options
@click.option("--out", metavar="DIR", type=PATH, help="The folder of the sweep.  [saved_models/sweep-TIME]")
@click.option("--resume", metavar="DIR", type=PATH, help="Continue an interrupted sweep with its own settings.")
@click.option("--append", metavar="CSV", help="Add each run's row to a table of results as soon as it is finished.")
@click.option("--jobs", type=int, metavar="N", help="How many models train at once.  [1; on Slurm: all]")
@click.option("--executor", metavar="WHERE", default="local", show_default=True, help="local, or slurm: as jobs.")
@click.option(
    "--slurm", metavar="KEY=VALUE", multiple=True, help="time, partition, gpus, cpus, mem, ... of a job; repeatable."
)
@click.option("--dry-run", is_flag=True, help="Print the batch script for Slurm, and do nothing.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but results and errors.")
def sweep(quiet, append, **arguments):
    """Train several models with one recipe on the same split, and compare them.

    Each model gets a run folder inside the folder of the sweep; its row of results names the `kmed train` command that
    makes the run. After an interruption, the same command or --resume continues the sweep: finished runs are skipped,
    and the interrupted one continues after its last epoch. At the end, DIR/comparison holds the table, figures and page
    of `kmed compare`. A run that fails is named, and the others are still trained. With --jobs, several models are
    trained at once on this machine, each on its share of the processor cores; each one prints to DIR/MODEL.log.

    With --executor slurm, the models are trained as an array of Slurm jobs, and the command waits for them. --slurm
    takes time (minutes or HH:MM:SS; needed), partition, gpus, cpus, mem (16GB), account, qos, constraint, exclude and
    setup (a line of shell that is run first). A job that is preempted or reaches its time limit is put into the queue
    again, and continues after its last finished epoch.

    \b
    Examples:
      kmed sweep --models resnet18,densenet121,vit --config configs/nih_cxr_six.yaml --data data/nih_cxr_sample
      kmed sweep --models resnet18,vit --image-size 64x80 --epochs 3 --out saved_models/drawn
      kmed sweep --models resnet18,densenet121,vit --jobs 3 --data my_pictures
      kmed sweep --resume saved_models/drawn
      kmed sweep --models resnet18,vit --executor slurm --slurm time=240 --slurm partition=gpu --slurm gpus=1
    """
    if quiet:
        configure(True)
    with one_line_errors(continue_with="kmed sweep --resume DIR"):
        from kmed.training import recipe

        swept = recipe.sweep(**arguments, append=append, quiet=quiet)
        if swept.script:
            click.echo(swept.script)
            return
        if append:
            click.echo(f"The rows of {len(swept.runs)} runs are in {append}.")
        if swept.comparison:
            print_comparison(swept.comparison)
        if swept.failed:
            raise RunError(
                f"{len(swept.failed)} of {len(swept.failed) + len(swept.runs)} runs failed: "
                f"{', '.join(swept.failed)}. Their errors are above."
            )


@click.command()
@click.option("--space", metavar="FILE", type=PATH, help="A YAML file of settings to try; see below.")
@click.option("--model", metavar="NAME", help="A network; `kmed models` lists them.  [resnet18]")
@recipe_options
@click.option("--trials", type=int, metavar="N", help="How many trials there are in all, over all processes.  [20]")
@click.option("--prune/--no-prune", default=True, show_default=True, help="Stop trials that lag behind the others.")
@click.option("--out", metavar="DIR", type=PATH, help="The folder of the study.  [saved_models/tune-TIME]")
@click.option("--resume", metavar="DIR", type=PATH, help="Continue a study with its own settings, or take part in it.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but results and errors.")
def tune(quiet, **arguments):
    """Try settings, and find those that are best on the validation split.

    The search space is a YAML file with one line per setting, such as

    \b
      train.learning_rate: {log: [0.0001, 0.01]}
      train.weight_decay: {float: [0, 0.1]}
      model.options.depth: {int: [2, 8]}
      augment.level: {choices: [light, medium, strong]}

    Each trial is a run folder DIR/trialN that has seen only train and val; no test picture is opened. To use several
    processes or machines, start the same command in each of them. Trials whose process was killed are continued. DIR
    holds trials.csv, best.yaml and report.html with the history of the trials and the importance of the settings.

    \b
    Examples:
      kmed tune --space space.yaml --data my_pictures --trials 30 --out saved_models/tuned
      kmed tune --resume saved_models/tuned --trials 50
      kmed train --config saved_models/tuned/best.yaml
    """
    if quiet:
        configure(True)
    with one_line_errors(continue_with="kmed tune --resume DIR"):
        from kmed.training import tune as tuning

        result = tuning.tune(**arguments)
        best = result.trials.set_index("trial").loc[int(result.best.folder.name.removeprefix("trial"))]
        shown = best.drop(["state", "best_epoch", "epochs", "minutes", "note"])
        click.echo(f"Best trial: {result.best.folder}\n{shown.to_string()}")
        click.echo("These are validation scores, and the best of many, so they are too good.")
        click.echo(f"Train with these settings, and score the test split once: kmed train --config {result.config}")
        if result.page.exists():
            click.echo(f"Report: {result.page}")


@click.command()
@click.option("--model", metavar="NAME", help="A network; `kmed models` lists them.  [resnet18]")
@recipe_options
@click.option("--folds", type=int, metavar="K", default=5, show_default=True, help="How many folds there are.")
@click.option(
    "--repeats",
    type=int,
    metavar="R",
    default=1,
    show_default=True,
    help="How often the folds are drawn, with R seeds.",
)
@click.option("--all-splits", is_flag=True, help="The data's test pictures get a fold too; none are held out.")
@click.option("--out", metavar="DIR", type=PATH, help="The folder.  [saved_models/DATA-MODEL-crossval-TIME]")
@click.option("--resume", metavar="DIR", type=PATH, help="Continue an interrupted one with its own settings.")
@click.option("--append", metavar="CSV", help="Add the rows of all pictures and of the ensemble to a table.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but results and errors.")
def crossval(quiet, **arguments):
    """Train one model per fold, and score all pictures, each by a model that has not seen it.

    The folds keep groups (patients, photographs) together and balance the classes. A test split that comes with the
    data is held out: no fold has its pictures. Each model then chooses its best epoch on the fold that it judges.
    Without a test split, or with --all-splits, it chooses the epoch on the next fold, so that nothing about the fold is
    known in training.

    DIR holds one run folder per fold, folds.csv, and of all pictures together predictions.csv, metrics.json, result.csv
    and report.html; fold_scores.csv has the scores of each fold. DIR/ensemble is a run folder: the mean of all models,
    calibrated out of fold, which alone scores the held-out pictures, and does so once. After an interruption, the same
    command or --resume continues. `kmed compare` takes several such folders.

    \b
    Examples:
      kmed crossval --model efficientnetlite0 --weights imagenet --data my_pictures
      kmed crossval --config configs/blood_cells.yaml --data data/blood_cells --all-splits --out saved_models/folds
      kmed crossval --resume saved_models/folds
    """
    if quiet:
        configure(True)
    with one_line_errors(continue_with="kmed crossval --resume DIR"):
        from kmed.training import crossval as validation

        result = validation.crossval(**arguments)
        click.echo(result.pooled.summary.read_text(encoding="utf-8"))
        click.echo("Ensemble of all runs:")
        click.echo(result.ensemble.summary.read_text(encoding="utf-8"))
        click.echo(f"Folder: {result.folder}")
        print_report(result.pooled)


@click.command()
def models():
    """List the networks with their parameters, multiply-adds, input size and ImageNet weights.

    \b
    Example:
      kmed models
    """
    with one_line_errors():
        from kmed.models.build import model_facts
        from kmed.models.pretrained import INSTALL

        facts = model_facts()
        rows = [
            (
                row.name,
                f"{row.trainable_parameters / 1e6:.2f} M",
                f"{row.multiply_adds / 1e9:.2f} G",
                row.image_size,
                row.imagenet_weights.removeprefix("hf://").removeprefix("package "),
                f"{row.imagenet_accuracy:.1f}" if row.imagenet_weights else "",
                "yes" if row.weights_tested else "",
            )
            for row in facts.itertuples(index=False)
        ]
        rows.insert(0, ("model", "params", "mult-adds", "image", "ImageNet weights", "top-1", "tested"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (f"{text:{side}{width}}" for text, side, width in zip(row, "<>><<>>", widths, strict=True))
            click.echo("  ".join(cells).rstrip())
        click.echo(
            "\nparams: trainable, with 4 classes; mult-adds: of one image of that size. timm/...: on the Hugging\n"
            f"Face hub; the others: {INSTALL}. top-1: % right on ImageNet, as published.\n"
            "tested: kmed's own tests load them. docs/pretrained.md has sizes and licences."
        )
