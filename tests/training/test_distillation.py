"""A student and its teacher: what it learns from, what is refused, and that nothing of the teacher stays in it."""

import logging
import os
import shutil
import subprocess
import sys

import keras
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import kmed
from kmed.cli.main import main
from kmed.config import load_config
from kmed.data.readers.load import load_table
from kmed.errors import ConfigError, KmedError, RunError
from kmed.losses import MaskedBinaryCrossentropy
from kmed.runs import Run
from kmed.schemas.records import TeacherFile, check
from kmed.tasks import TASKS
from kmed.training import distillation, fit, loop
from kmed.training.distillation import Student, Teacher, check_lessons, check_teacher

STUDENT = ["model.options={patch_size: 8, width: 8, depth: 1, num_heads: 2}", "model.dropout=0.1"]
LESSONS = ["augment.level=medium", "augment.mixup=0.3", "train.teacher_temperature=2", "train.tensorboard=false"]


# ---- One step ------------------------------------------------------------------------------------------

HARD = {"multiclass": keras.losses.CategoricalCrossentropy(), "multilabel": MaskedBinaryCrossentropy()}


def small_model(task, seed, num_classes=3):
    keras.utils.set_random_seed(seed)
    images = keras.Input((4, 5, 3), name="images")
    x = keras.layers.Flatten()(images / 255.0)
    return keras.Model(images, keras.layers.Dense(num_classes, activation=TASKS[task].activation, name="head")(x))


def draw_batch(task, num_images=8, num_classes=3):
    """Returns (images, labels, weights); in multilabel, some labels are unknown."""
    rng = np.random.default_rng(0)
    labels = np.eye(num_classes, dtype="float32")[np.arange(num_images) % num_classes]
    if task == "multilabel":
        labels[rng.random(labels.shape) < 0.3] = np.nan
    images = rng.uniform(0, 255, (num_images, 4, 5, 3)).astype("float32")
    return images, labels, rng.random(num_images).astype("float32")


def divergence(task, taught, probs, temperature):
    """Returns (N,), KL by its definition; a power 1/T of probabilities is what logits divided by T give."""

    def soften(each):
        answers = each[:, None] if TASKS[task].exclusive else np.stack([each, 1 - each], axis=-1)
        powers = answers.astype(float) ** (1 / temperature)
        return powers / powers.sum(axis=-1, keepdims=True)

    wanted, found = soften(taught), soften(probs)
    return (wanted * np.log(wanted / found)).sum(axis=-1).mean(axis=-1)


@pytest.mark.parametrize("once", [False, True], ids=["each step", "once"])
@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_one_step_learns_from_the_labels_and_the_answers_for_the_same_images(task, once):
    images, labels, weights = draw_batch(task)
    teacher, model = small_model(task, 1), small_model(task, 2)
    taught, probs = np.asarray(teacher(images)), np.asarray(model(images))
    student = Student(model, Teacher(Run("teacher"), teacher, once))
    loss = TASKS[task].make_distillation(HARD[task], temperature=2.0, weight=0.25)
    jit = keras.backend.backend() == "jax"
    student.compile(keras.optimizers.SGD(0.1), loss, metrics=[keras.metrics.MeanSquaredError("mse")], jit_compile=jit)
    given = np.concatenate([labels, taught], axis=1) if once else labels
    before = [np.asarray(weight) for weight in teacher.weights]
    row = student.train_on_batch(images, given, sample_weight=weights, return_dict=True)
    hard = float(HARD[task](labels, probs, sample_weight=weights))
    expected = 0.75 * hard + 0.25 * 2.0**2 * np.mean(weights * divergence(task, taught, probs, 2.0))
    assert float(row["loss"]) == pytest.approx(expected, rel=1e-4)
    if task == "multiclass":
        assert float(row["mse"]) == pytest.approx(np.mean((labels - probs) ** 2), rel=1e-4)  # with the labels alone
    assert not np.allclose(np.asarray(student(images)), probs)
    assert list(map(id, student.weights)) == list(map(id, student.variables)) == list(map(id, model.weights))
    for weight, value in zip(teacher.weights, before, strict=True):
        np.testing.assert_array_equal(np.asarray(weight), value)


def test_one_step_on_jax():
    pytest.importorskip("jax", reason="JAX is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    result = subprocess.run([*command, "-k", "test_one_step_learns"], capture_output=True, text=True, env=environment)
    assert result.returncode == 0 and "4 passed" in result.stdout, result.stdout[-3000:] + result.stderr[-1000:]


def test_a_teacher_of_another_size_sees_the_same_images_resized():
    images, _, _ = draw_batch("multiclass")
    model = small_model("multiclass", 1)
    assert distillation._resized(model, (4, 5)) is model
    larger = distillation._resized(model, (8, 10))
    doubled = np.repeat(np.repeat(images, 2, axis=1), 2, axis=2)
    np.testing.assert_allclose(
        larger(doubled), model(keras.ops.image.resize(doubled, (4, 5), antialias=True)), rtol=1e-5
    )
    assert larger.count_params() == model.count_params()


# ---- Whole runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def settings(tiny, short_run):
    """Settings of a student of `short_run`."""
    return [*tiny, *STUDENT, *LESSONS, f"train.teacher={short_run.folder}"]


@pytest.fixture(scope="module")
def student(settings, tmp_path_factory):
    """(Run, lines): a finished student, in which nothing may be changed, and what was logged."""
    lines, handler = [], logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger, level = logging.getLogger("kmed"), logging.getLogger("kmed").level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    run = kmed.fit(load_config(overrides=settings), out=tmp_path_factory.mktemp("students") / "run")
    logger.removeHandler(handler)
    logger.setLevel(level)
    return run, lines


def history(run):
    return pd.read_csv(run.history).drop(columns="seconds")


def test_the_settings_and_the_teacher_are_recorded(settings, student, short_run):
    run, _ = student
    stored = run.read_config().train
    assert stored.teacher == str(short_run.folder.resolve())
    assert (stored.teacher_temperature, stored.teacher_weight) == (2.0, 0.5)
    record = check(TeacherFile, kmed.reading.read_json(run.teacher), run.teacher)
    assert (record.folder, record.model) == (stored.teacher, "vit")


def test_its_memory_and_time_are_said_before_training(student):
    _, lines = student
    said = [
        next(i for i, line in enumerate(lines) if line.startswith(start))
        for start in ("Teacher: ", "The teacher answers in each step, which adds about", "Epoch 1/2:")
    ]
    assert said == sorted(said) and "MB more memory)" in lines[said[0]]


def test_the_saved_student_has_only_its_own_weights(student, short_run):
    run, _ = student
    config = run.read_config()
    model, own = kmed.load_model(run.model), loop.build(config, load_table(config.data.path), weights=None)
    assert type(model) is type(own) and model.name == own.name
    assert [(w.path, w.shape) for w in model.weights] == [(w.path, w.shape) for w in own.weights]
    assert model.count_params() < kmed.load_model(short_run.model).count_params()


def test_a_resumed_student_equals_an_uninterrupted_one(settings, student, tmp_path, monkeypatch):
    run, _ = student
    say, out = loop.say, tmp_path / "run"

    def stop(line):
        if line.startswith("Epoch 1/2"):
            raise KeyboardInterrupt
        say(line)

    monkeypatch.setattr(loop, "say", stop)
    with pytest.raises(KeyboardInterrupt):
        kmed.fit(load_config(overrides=settings), out=out)
    monkeypatch.undo()
    assert len(history(Run(out))) == 1
    resumed = kmed.fit(load_config(overrides=settings), out=out)  # the same command continues
    pd.testing.assert_frame_equal(history(resumed), history(run), check_exact=True)
    assert resumed.predictions.read_bytes() == run.predictions.read_bytes()


def test_with_weight_zero_it_equals_plain_training_to_the_bit(tiny, settings, student, tmp_path):
    without = [text for text in settings if "teacher" not in text]
    plain = kmed.fit(load_config(overrides=[*without, "train.epochs=1"]), out=tmp_path / "plain")
    zero = [*settings, "train.teacher_weight=0", "train.epochs=1"]
    taught = kmed.fit(load_config(overrides=zero), out=tmp_path / "zero")
    pd.testing.assert_frame_equal(history(taught), history(plain), check_exact=True)
    assert taught.predictions.read_bytes() == plain.predictions.read_bytes()
    assert not plain.teacher.exists()


def test_without_augmentation_the_teacher_answers_once(settings, monkeypatch, short_run):
    config = load_config(overrides=[*settings, "augment.level=none", "augment.mixup=0"])
    table = kmed.assign_splits(load_table(config.data.path)).split("train")
    teacher = distillation.open_teacher(config, None)
    answers = teacher.answer_all(table, config)
    probs = kmed.predict(kmed.load_model(short_run.model), table, config)
    np.testing.assert_array_equal(answers, probs)
    images, targets = next(iter(loop.training_pipeline(table, config, targets=answers).epoch(0)))
    np.testing.assert_allclose(np.asarray(targets)[:, 3:], np.asarray(teacher.answer(images)), atol=1e-5)
    for changed in ("augment.level=light", "augment.cutmix=0.5"):
        augmented = load_config(overrides=[*settings, "augment.level=none", "augment.mixup=0", changed])
        assert distillation.open_teacher(augmented, None).answer_all(table, augmented) is None


# ---- What is refused -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(small_npz):
    """The pictures of the runs, with their splits."""
    return kmed.assign_splits(load_table(small_npz))


@pytest.fixture
def config(settings):
    return load_config(overrides=[*settings, "task=multiclass", "data.range=full"])


def with_data(config, **changes):
    return config.model_copy(update={"data": config.data.model_copy(update=changes)})


def test_the_teachers_own_split_is_accepted(config, table, caplog):
    check_teacher(config)
    check_lessons(config, table)
    assert not caplog.messages


@pytest.mark.parametrize(
    ("names", "difference"),
    [(("red", "blue", "green"), "in another order"), (("red", "green", "x"), "new: x; missing: blue")],
)
def test_other_classes_are_refused(config, table, names, difference):
    with pytest.raises(RunError, match=f"classes are red, green, blue, but .*{difference}.*data.class_names") as raised:
        check_lessons(config, table.replace(class_names=names))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("split", ["val", "test", "held_out"])
def test_a_teacher_that_has_trained_on_images_that_judge_is_refused(config, table, short_run, split):
    splits = table.rows["split"].to_numpy(dtype=object).copy()
    moved = np.flatnonzero(splits == "train")[:4]
    splits[moved] = split
    leaking, path = table.with_columns(split=splits), table.rows["path"][moved[0]]
    count = (splits == split).sum()
    with pytest.raises(RunError, match=f"has trained on 4 of {count} images of {split}, .*such as {path}: ") as raised:
        check_lessons(config, leaking)
    assert "\n" not in str(raised.value) and f"data.splits={short_run.splits.resolve()}" in str(raised.value)
    others = leaking.with_columns(path="new" + leaking.rows["path"])  # other images of the same patients
    with pytest.raises(RunError, match=f"has trained on 4 of {count} images of {split}, or on images of their groups"):
        check_lessons(config, others)
    renamed = others.with_columns(group="new" + others.rows["group"])
    check_lessons(config, renamed)


def test_images_under_other_names_are_said(config, table, caplog):
    logging.getLogger("kmed").propagate = True
    with caplog.at_level(logging.WARNING, logger="kmed"):
        check_lessons(config, table.with_columns(path="x" + table.rows["path"], group="x" + table.rows["group"]))
    assert "none of the 72 images that the teacher has trained on is in these data by its name" in caplog.text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task=multilabel", "is multiclass, but this run is multilabel"),
        ("data.fit=crop", "Received: crop. Set data.fit=pad"),
        ("data.interpolation=box", "Received: box. Set data.interpolation=bilinear"),
        ("data.decode=reduced", "Received: reduced. Set data.decode=full"),
        ("data.image_size=40x40", "takes images of 32x40, which have another shape than 40x40"),
    ],
)
def test_a_teacher_that_would_see_unfamiliar_images_is_refused(settings, override, message):
    with pytest.raises(ConfigError, match=message) as raised:
        check_teacher(load_config(overrides=[*settings, override]))
    assert "\n" not in str(raised.value)
    check_teacher(load_config(overrides=[*settings, "data.image_size=64x80"]))


def test_another_range_of_values_is_refused(config, table):
    with pytest.raises(RunError, match="with data.range=0-65535 .*Received: 0-4095. Set data.range=0-65535"):
        check_lessons(with_data(config, range="0-4095"), table)


@pytest.mark.parametrize("setting", ["teacher_temperature=2", "teacher_weight=0.3"])
def test_settings_of_distillation_need_a_teacher(setting):
    with pytest.raises(ConfigError, match=f"train.{setting.split('=')[0]} needs a teacher. .* Give train.teacher"):
        check_teacher(load_config(overrides=[f"train.{setting}"]))


@pytest.mark.parametrize("weight", ["-0.1", "1.1"])
def test_a_weight_is_a_share(weight):
    with pytest.raises(ConfigError, match=r"train.teacher_weight: .*Received"):
        load_config(overrides=[f"train.teacher_weight={weight}"])


def test_a_refusal_is_one_line_and_leaves_nothing(settings, tmp_path, short_run):
    unfinished = shutil.copytree(short_run.folder, tmp_path / "teacher")
    (unfinished / "model.keras").unlink()
    (unfinished / "result.csv").unlink()
    arguments = [argument for text in settings for argument in ("--set", text)]
    for teacher, message in ((tmp_path / "none", "does not exist"), (unfinished, "holds no trained model yet")):
        out = tmp_path / "deep" / "run"
        result = CliRunner().invoke(main, ["train", *arguments, "--set", f"train.teacher={teacher}", "--out", str(out)])
        assert result.exit_code == 1 and message in result.output and "Traceback" not in result.output
        assert not out.parent.exists()


def test_a_run_that_continues_needs_the_same_teacher(config, short_run, tmp_path):
    teacher, run = (Run(shutil.copytree(short_run.folder, tmp_path / name)) for name in ("teacher", "run"))
    own = config.model_copy(update={"train": config.train.model_copy(update={"teacher": str(teacher.folder)})})
    distillation.record_teacher(run, own)
    distillation.check_same_teacher(run, own)
    with teacher.model.open("ab") as file:
        file.write(b"changed")
    with pytest.raises(RunError, match="is another model than when this run was started") as raised:
        distillation.check_same_teacher(run, own)
    assert "\n" not in str(raised.value)
    run.teacher.write_text("{}")
    with pytest.raises(KmedError, match="teacher.json"):
        distillation.check_same_teacher(run, own)


def test_the_latest_run_as_teacher_is_recorded_by_its_own_name(config, short_run, tmp_path):
    (tmp_path / "latest").symlink_to(short_run.folder)
    train = config.train.model_copy(update={"teacher": str(tmp_path / "latest")})
    found = fit.with_absolute_paths(config.model_copy(update={"train": train}))
    assert found.train.teacher == str(short_run.folder.resolve())


def test_a_teacher_changes_no_setting_of_fine_tuning(config):
    for weights in (None, "imagenet"):
        model = config.model.model_copy(update={"weights": weights})
        taught = config.model_copy(update={"model": model})
        alone = taught.model_copy(update={"train": taught.train.model_copy(update={"teacher": None})})
        assert fit.with_recipe(taught).model_dump(exclude={"train": {"teacher"}}) == fit.with_recipe(alone).model_dump(
            exclude={"train": {"teacher"}}
        )
