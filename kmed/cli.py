"""The command line: read the arguments, call one function, turn an error into one line."""

import pathlib

import click

import kmed
from kmed import cli_use
from kmed.cli_data import data
from kmed.commands import PATH, Commands, add_row, add_rows, check_table, one_line_errors
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


@main.command()
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
        from kmed.runtime import load_backend

        if resume is not None and (config or overrides or out):
            raise ConfigError("--resume goes on with the run's own settings; give no others beside it.")
        settings = read_settings(config, overrides) if resume is None else None
        load_backend()
        from kmed import results
        from kmed import train as training
        from kmed.runs import open_run

        check_table(append, {(settings or open_run(resume).read_config()).task})
        run = training.resume(resume) if resume is not None else training.fit(settings, out=out)
        click.echo(run.summary.read_text(encoding="utf-8"))
        click.echo(f"Run folder: {run.folder}")
        if append:
            results.append_result(run, append)
        draw_page(run)


def read_settings(config, overrides):
    """Returns the settings of a YAML file and overrides; of the demo data where none are given."""
    from kmed.config import load_config

    settings = load_config(config, overrides)
    if config is None and settings.data.path is None:
        # The demo pictures are small and few, and want a longer training on a smaller size than the defaults.
        demo_config = pathlib.Path(__file__).with_name(f"demo_{settings.task}.yaml")
        settings = load_config(demo_config, overrides)
    return settings


@main.command()
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
        from kmed import sweep as sweeping
        from kmed.models import check_model
        from kmed.results import append_results
        from kmed.runs import Run, default_folder
        from kmed.runtime import load_backend

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


@main.command()
@click.argument("run", type=PATH)
@click.option("--split", default="test", show_default=True, help="Any split of the run's data: val, test_simple, ...")
@cli_use.FORMAT
@cli_use.QUANTIZE
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
        from kmed import evaluation, results
        from kmed.summary import describe

        if rescore:
            click.echo(results.rescore(run, settings).summary.read_text(encoding="utf-8"))
        else:
            judged = evaluation.judge(run, split, data=data, format=format, quantize=quantize)
            click.echo(describe(judged, split))
        if append:
            results.append_result(finished_run(run), append)
        if rescore:
            draw_page(finished_run(run))


@main.command()
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
    from kmed.report import write_report

    click.echo(f"Report: {write_report(run, **options)}")


@main.command()
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
    from kmed import compare as comparing
    from kmed.report import write_comparison

    comparison = comparing.compare(runs, **options)
    made = [*comparing.write_files(comparison, folder), write_comparison(comparison, folder)]
    click.echo((folder / "comparison.md").read_text(encoding="utf-8"))
    for file in made:
        click.echo(f"Made: {file}")


@main.command()
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
        from kmed.explain_run import explain_run

        for path in explain_run(run, images, class_name=class_name, data=data, out=out):
            click.echo(f"Made: {path}")


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


main.add_command(cli_use.export)
main.add_command(cli_use.predict)
main.add_command(cli_use.benchmark)
main.add_command(cli_use.demo)
main.add_command(data)


if __name__ == "__main__":
    main()
