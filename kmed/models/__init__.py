"""Models by name: scaling of the pixels, a backbone of one of the families, and a float32 head.

Importing this module is cheap: Keras is loaded when a model is built.
"""

from kmed.models.build import build_model, check_model, list_models, model_facts, model_options
from kmed.models.registry import resolve_name

__all__ = ["build_model", "check_model", "list_models", "model_facts", "model_options", "resolve_name"]
