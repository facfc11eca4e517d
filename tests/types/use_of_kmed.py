"""Every public function as a script of one's own would call it; read by mypy, never run."""

import pathlib

import kmed


def commands(folder: pathlib.Path) -> None:
    """The functions that do what the commands do."""
    run = kmed.train(model="resnet18", data="my_images", image_size=(60, 80), epochs=3, settings=["data.group=patient"])
    print(run.folder / "report.html", run.report)
    swept = kmed.sweep(["resnet18", "vit"], data=folder, out=folder / "sweep")
    print([each.folder for each in swept.runs], swept.failed)
    tuned = kmed.tune("space.yaml", model="resnet18", data=folder, trials=3, out=folder / "tuned")
    print(tuned.best.folder, tuned.config, tuned.trials["state"].tolist())
    validated = kmed.crossval(model="resnet18", data=folder, folds=3, repeats=2, all_splits=True, out=folder / "folds")
    print(validated.pooled.predictions, [each.folder for each in validated.runs])
    scores = kmed.evaluate(run.folder, "test", format="tflite", quantize="int8")
    print(scores.scores["accuracy"].low, scores.level)
    page: pathlib.Path = kmed.write_report(run.folder, data=folder)
    comparison, files = kmed.compare([run.folder, folder], out=folder, append=folder / "results.csv")
    elsewhere = kmed.evaluate(run.folder, on=folder / "other", class_map={"EOS": "EOSINOPHIL", "debris": None})
    here = kmed.recalibrate(run.folder, on=folder / "other", out=folder / "here", class_map=["EOS=EOSINOPHIL"])
    both = kmed.ensemble([run.folder, folder], folder / "both", average="logits", settings=["evaluate.views=flips"])
    print(both.ensemble, here.recalibration, elsewhere.level)
    print(comparison.conclusions, [file.name for file in files], page)
    maps: list[pathlib.Path] = kmed.explain_run(run.folder, class_name="MONOCYTE")
    print(maps, kmed.model_facts().columns)
    exported = kmed.export(run.folder, "tflite", "int8", tolerance=1.0)
    print(exported.path, exported.record["checked"])
    for prediction in kmed.classify_files(run.folder, [folder, "smear.png"], batch_size=8):
        print(prediction.path, prediction.found, prediction.probs["MONOCYTE"])
    print(kmed.merge_shards(folder / "answers.csv").name)
    kmed.serve(run.folder, port=0, batch_size=16, timeout=10.0, token_file=folder / "token.txt")
    print(kmed.benchmark(run.folder, [("tflite", "int8")], batches=[1]).columns)
    print(kmed.write_demo(run.folder, folder / "demo", quantize="int8"))


def data(folder: pathlib.Path) -> None:
    """The functions that do what the commands of `kmed data` do."""
    table, files = kmed.show_data(folder, settings=["data.group=patient"])
    print(table.counts(), files)
    audit, files = kmed.audit_data(folder, splits=["train", "test"])
    print(audit.photograph, files)
    doubtful, files = kmed.find_label_errors(folder, cut=0.1)
    print(doubtful["suggested"], files)
    kmed.draw_demo(folder, task="multilabel", seed=1)
    table, packed = kmed.pack_data(folder, "packed.npz", image_size="60x80")
    print(len(table), packed)
    kmed.download_data("blood-cells", folder)


def parts(folder: pathlib.Path) -> None:
    """The parts, for scripts of one's own."""
    config = kmed.load_config(None, ["train.epochs=3", ("data.image_size", (60, 80))])
    table = kmed.assign_splits(kmed.load_table(folder, group="regex:(patient\\d+)"), val_fraction=0.2)
    kmed.write_splits(kmed.assign_folds(table, num_folds=3), folder / "splits.csv")
    batches = kmed.make_dataset(table.split("train"), (60, 80), training=True, augment="light")
    steps: int = kmed.steps_per_epoch(len(table), 32)
    name: str = kmed.list_models()[0]
    model = kmed.build_model(name, num_classes=len(table.class_names), image_size=(60, 80))
    kmed.freeze_batch_norm(model)
    model.fit(batches, steps_per_epoch=steps)
    run = kmed.fit(config, table=table, out=folder / "run")
    kmed.resume(run.folder)
    kmed.rescore(run.folder, ["evaluate.thresholds=youden"])
    kmed.fit_novelty(run.folder)
    probs = kmed.predict(kmed.load_model(run.model), table, config)
    heat = kmed.explain(model, probs, class_indices=0)
    print(kmed.overlay(probs, heat).shape, kmed.__version__)
