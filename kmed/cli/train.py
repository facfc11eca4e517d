"""The commands that train: train and sweep."""

import click

from kmed.cli.evaluate import draw_page, show_comparison
from kmed.cli.shared import PATH, add_row, check_table, one_line_errors
from kmed.errors import ConfigError, RunError
from kmed.progress import configure

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


# What `kmed train` and `kmed sweep` share, in the order of their help.
RECIPE = (
    click.option("--task", metavar="TASK", help="multiclass or multilabel.  [multiclass]"),
    click.option("--data", metavar="PATH", help="A folder, a CSV or an npz.  [built-in demo data]"),
    click.option("--config", metavar="FILE", help="A YAML file of settings, such as configs/blood_cells.yaml."),
    click.option("--epochs", metavar="N", help="How often the training pictures are seen.  [10]"),
    click.option("--batch-size", metavar="N", help="Pictures a step.  [32]"),
    click.option("--image-size", metavar="HxW", help="Height and width that pictures are resized to.  [120x160]"),
    click.option("--lr", metavar="RATE", help="Peak learning rate of AdamW.  [0.001]"),
    click.option("--seed", metavar="N", help="Of the split, the weights and every draw.  [0]"),
    click.option("--weights", metavar="SOURCE", help="imagenet, a safetensors file, or an earlier run.  [random]"),
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
      kmed train --model vit --task multilabel
      kmed train --config configs/blood_cells.yaml --data data/blood_cells --model efficientnetb0
      kmed train --data my_pictures --set data.group='regex:(patient\\d+)' --set augment.level=medium
      kmed train --resume saved_models/latest
    """
    if quiet:
        configure(True)
    overrides = [*settings, *((FLAGS[name], value) for name, value in flags.items() if value is not None)]
    with one_line_errors(go_on="kmed train --resume RUN"):
        from kmed.data.demo.sets import read_settings
        from kmed.runtime import load_backend

        if resume is not None and (config or overrides or out):
            raise ConfigError("--resume goes on with the run's own settings; give no others beside it.")
        settings = read_settings(config, overrides) if resume is None else None
        load_backend()
        from kmed.evaluation import result_rows
        from kmed.runs import open_run
        from kmed.training import fit as training

        check_table(append, {(settings or open_run(resume).read_config()).task})
        run = training.resume(resume) if resume is not None else training.fit(settings, out=out)
        click.echo(run.summary.read_text(encoding="utf-8"))
        click.echo(f"Run folder: {run.folder}")
        if append:
            result_rows.append_result(run, append)
        draw_page(run)


@click.command()
@click.option("--models", metavar="NAME,NAME,...", help="The networks; `kmed models` lists them.")
@recipe_options
@click.option("--out", metavar="DIR", type=PATH, help="The folder of the sweep.  [saved_models/sweep-TIME]")
@click.option("--resume", metavar="DIR", type=PATH, help="Go on with an interrupted sweep, with its own settings.")
@click.option("--append", metavar="CSV", help="Add each run's row to a table of results as soon as it is finished.")
@click.option("--quiet", "-q", is_flag=True, help="Say nothing but results and errors.")
def sweep(models, config, settings, out, resume, append, quiet, **flags):
    """Train several models with one recipe on the same split, and compare them.

    Each model has a run folder in the sweep's, made by the `kmed train` command that its row of results names. The same
    command, or --resume, goes on after an interruption: finished runs are skipped, the interrupted one goes on from its
    last epoch. At the end stand `kmed compare`'s table, figures and page, in DIR/comparison. A run that fails is named,
    and the others go on.

    \b
    Examples:
      kmed sweep --models resnet18,densenet121,vit --config configs/nih_cxr.yaml --data data/nih_cxr_sample
      kmed sweep --models resnet18,vit --image-size 64x80 --epochs 3 --out saved_models/drawn
      kmed sweep --resume saved_models/drawn
    """
    if quiet:
        configure(True)
    given = {"config": config, **flags}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None]
    options += [f"--set={setting}" for setting in settings]
    with one_line_errors(go_on="kmed sweep --resume DIR"):
        from kmed.data.demo.sets import read_settings
        from kmed.evaluation.result_rows import append_results
        from kmed.models.build import check_model
        from kmed.runs import Run, default_folder
        from kmed.runtime import load_backend
        from kmed.training import sweep as sweeping

        if resume is not None and (models or options or out):
            raise ConfigError("--resume goes on with the sweep's own settings; give no others beside it.")
        if resume is None and not models:
            raise ConfigError("Give --models, such as --models resnet18,vit, or --resume DIR.")
        load_backend()
        if resume is None:
            names, tasks = [name.strip() for name in models.split(",") if name.strip()], set()
            for name in names:  # a mistake is found before hours of training
                overrides = [*settings, *((FLAGS[key], value) for key, value in flags.items() if value is not None)]
                read = read_settings(config, [*overrides, (FLAGS["model"], name)])
                check_model(name, read.data.image_size, read.model.options)
                tasks.add(read.task)
            check_table(append, tasks)
            plan = sweeping.make_plan(names, options, out or default_folder("sweep"))
        else:
            plan = sweeping.read_plan(resume)
            begun = [plan.run(name) for name in plan.models if append and plan.run(name).config.exists()]
            check_table(append, {run.read_config().task for run in begun})
        failed = sweeping.train_all(plan, quiet=quiet, finished=lambda run: add_row(run, append))
        finished = [plan.run(model).folder for model in plan.models if model not in failed]
        if append:  # again: what could not be added before is an error now
            append_results([Run(folder) for folder in finished], append)
            click.echo(f"The rows of {len(finished)} runs are in {append}.")
        if len(finished) > 1:
            show_comparison(finished, plan.folder / "comparison")
        if failed:
            raise RunError(
                f"{len(failed)} of {len(plan.models)} runs failed: {', '.join(failed)}. Their errors are above."
            )


@click.command()
def models():
    """List the networks: parameters, multiply-adds, input size, ImageNet weights.

    \b
    Example:
      kmed models
    """
    with one_line_errors():
        from kmed.models.build import model_facts

        facts = model_facts()
        for column, unit, size in (
            ("trainable_parameters", "M", 1e6),
            ("total_parameters", "M", 1e6),
            ("multiply_adds", "G", 1e9),
        ):
            facts[column] = [f"{value / size:.2f} {unit}" for value in facts[column]]
        click.echo(facts.to_string(index=False))
