"""kmed: medical image classification with Keras 3, honestly judged.

Importing it is light: what needs Keras, TensorFlow or scikit-learn is loaded at first use.
"""

import importlib

from kmed.version import __version__

# Public name -> module that holds it.
_EXPORTS = {
    "build_model": "kmed.models",
    "list_models": "kmed.models",
    "load_config": "kmed.config",
    "load_table": "kmed.data.readers.load",
    "assign_splits": "kmed.data.splits",
    "assign_folds": "kmed.data.splits",
    "write_splits": "kmed.data.splits",
    "make_dataset": "kmed.data.pipeline",
    "steps_per_epoch": "kmed.data.pipeline",
    "load_model": "kmed.models.keras_file",
    "predict": "kmed.evaluation.inference",
    "evaluate": "kmed.evaluation.run_evaluation",
    "benchmark": "kmed.deployment.benchmarking",
    "export": "kmed.deployment.exporting",
    "classify_files": "kmed.deployment.classify",
    "explain": "kmed.models.heatmaps",
    "overlay": "kmed.models.heatmaps",
    "rescore": "kmed.evaluation.run_evaluation",
    "fit_novelty": "kmed.evaluation.run_evaluation",
    "fit": "kmed.training.fit",
    "resume": "kmed.training.fit",
}

__all__ = ["__version__", *_EXPORTS]  # noqa: PLE0604


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'kmed' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__():
    return sorted(__all__)
