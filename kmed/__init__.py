"""kmed: medical image classification with Keras 3, honestly judged.

Importing it is light: what needs Keras, TensorFlow or scikit-learn is loaded at first use.
"""

import importlib

__version__ = "0.1.0"

# Public name -> module that holds it.
_EXPORTS = {
    "build_model": "kmed.models",
    "list_models": "kmed.models",
    "load_config": "kmed.config",
    "load_table": "kmed.data.sources",
    "assign_splits": "kmed.data.splits",
    "assign_folds": "kmed.data.splits",
    "write_splits": "kmed.data.splits",
    "make_dataset": "kmed.data.pipeline",
    "steps_per_epoch": "kmed.data.pipeline",
    "load_model": "kmed.models.keras_file",
    "predict": "kmed.evaluation",
    "evaluate": "kmed.evaluation",
    "benchmark": "kmed.benchmarking",
    "export": "kmed.exporting",
    "classify_files": "kmed.classify",
    "explain": "kmed.explanation",
    "overlay": "kmed.explanation",
    "rescore": "kmed.results",
    "fit_novelty": "kmed.results",
    "fit": "kmed.train",
    "resume": "kmed.train",
}

__all__ = ["__version__", *_EXPORTS]  # noqa: PLE0604


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'kmed' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__():
    return sorted(__all__)
