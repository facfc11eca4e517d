"""kmed: medical image classification with Keras 3, honestly judged.

Each command of the command line has its function here, with the same arguments. Importing kmed is light: what
needs Keras, TensorFlow or scikit-learn is loaded at first use.
"""

import importlib
from typing import TYPE_CHECKING

from kmed.version import __version__

if TYPE_CHECKING:  # the same names, for whoever checks types or completes them
    from kmed.config import load_config
    from kmed.data.audit.report import audit_data
    from kmed.data.demo.sets import draw_demo
    from kmed.data.download import download_data
    from kmed.data.pipeline import make_dataset, steps_per_epoch
    from kmed.data.prepare import pack_data
    from kmed.data.readers.load import load_table
    from kmed.data.show import show_data
    from kmed.data.splits import assign_folds, assign_splits, write_splits
    from kmed.deployment.benchmarking import benchmark
    from kmed.deployment.classify import classify_files
    from kmed.deployment.demo_page import write_demo
    from kmed.deployment.exporting import export
    from kmed.deployment.serving import serve
    from kmed.deployment.shards import merge_shards
    from kmed.evaluation.inference import predict
    from kmed.evaluation.run_evaluation import fit_novelty, rescore
    from kmed.models.build import build_model, list_models, model_facts
    from kmed.models.heatmaps import explain, overlay
    from kmed.models.keras_file import load_model
    from kmed.models.layers import freeze_batch_norm
    from kmed.report.comparison_page import compare
    from kmed.report.ensemble import ensemble
    from kmed.report.explain_sheet import explain_run
    from kmed.report.label_sheet import find_label_errors
    from kmed.report.recalibrating import recalibrate
    from kmed.report.run_page import write_report
    from kmed.report.scoring import evaluate
    from kmed.training.crossval import crossval
    from kmed.training.fit import fit, resume
    from kmed.training.recipe import sweep, train
    from kmed.training.tune import tune

# Public name -> module that holds it.
_EXPORTS = {
    # what the commands do
    "train": "kmed.training.recipe",
    "sweep": "kmed.training.recipe",
    "tune": "kmed.training.tune",
    "crossval": "kmed.training.crossval",
    "ensemble": "kmed.report.ensemble",
    "evaluate": "kmed.report.scoring",
    "recalibrate": "kmed.report.recalibrating",
    "write_report": "kmed.report.run_page",
    "compare": "kmed.report.comparison_page",
    "explain_run": "kmed.report.explain_sheet",
    "model_facts": "kmed.models.build",
    "export": "kmed.deployment.exporting",
    "classify_files": "kmed.deployment.classify",
    "merge_shards": "kmed.deployment.shards",
    "serve": "kmed.deployment.serving",
    "benchmark": "kmed.deployment.benchmarking",
    "write_demo": "kmed.deployment.demo_page",
    "show_data": "kmed.data.show",
    "audit_data": "kmed.data.audit.report",
    "find_label_errors": "kmed.report.label_sheet",
    "draw_demo": "kmed.data.demo.sets",
    "pack_data": "kmed.data.prepare",
    "download_data": "kmed.data.download",
    # the parts, for scripts of one's own
    "load_config": "kmed.config",
    "load_table": "kmed.data.readers.load",
    "assign_splits": "kmed.data.splits",
    "assign_folds": "kmed.data.splits",
    "write_splits": "kmed.data.splits",
    "make_dataset": "kmed.data.pipeline",
    "steps_per_epoch": "kmed.data.pipeline",
    "build_model": "kmed.models.build",
    "freeze_batch_norm": "kmed.models.layers",
    "list_models": "kmed.models.build",
    "load_model": "kmed.models.keras_file",
    "fit": "kmed.training.fit",
    "resume": "kmed.training.fit",
    "predict": "kmed.evaluation.inference",
    "rescore": "kmed.evaluation.run_evaluation",
    "fit_novelty": "kmed.evaluation.run_evaluation",
    "explain": "kmed.models.heatmaps",
    "overlay": "kmed.models.heatmaps",
}

__all__ = [
    "__version__",
    "train",
    "sweep",
    "tune",
    "crossval",
    "ensemble",
    "evaluate",
    "recalibrate",
    "write_report",
    "compare",
    "explain_run",
    "model_facts",
    "export",
    "classify_files",
    "merge_shards",
    "serve",
    "benchmark",
    "write_demo",
    "show_data",
    "audit_data",
    "find_label_errors",
    "draw_demo",
    "pack_data",
    "download_data",
    "load_config",
    "load_table",
    "assign_splits",
    "assign_folds",
    "write_splits",
    "make_dataset",
    "steps_per_epoch",
    "build_model",
    "freeze_batch_norm",
    "list_models",
    "load_model",
    "fit",
    "resume",
    "predict",
    "rescore",
    "fit_novelty",
    "explain",
    "overlay",
]


if not TYPE_CHECKING:  # to a type checker it would mean that every name exists

    def __getattr__(name: str):
        if name not in _EXPORTS:
            raise AttributeError(f"module 'kmed' has no attribute {name!r}")
        return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__():
    return sorted(__all__)
