"""Models by name: scaling of the pixels, a backbone of one of the families, and a float32 head.

Importing this module is cheap: Keras is loaded when a model is built.
"""

import inspect
import math
import pathlib
from collections.abc import Sequence

from kmed.errors import ModelError, suggest
from kmed.models.pretrained import PRETRAINED
from kmed.models.registry import MODELS, family_of, resolve_name
from kmed.progress import say

__all__ = ["build_model", "check_model", "list_models", "model_facts", "model_options", "resolve_name"]

FACTS_PATH = pathlib.Path(__file__).with_name("facts.csv")

# {name: (mean, std) of pixels in [0, 1]}
NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


def list_models() -> list[str]:
    """Returns the names that `build_model` knows."""
    return list(MODELS)


def model_facts():
    """Returns a pandas.DataFrame with one row per model, measured at its default image size with 4 classes.

    Columns: name, trainable_parameters, total_parameters, multiply_adds (of one image),
    image_size ("HEIGHTxWIDTH"), imagenet_weights (where they can be had, or ""), imagenet_accuracy
    (percent, as their source reports it, or NaN), weights_tested (whether kmed's own tests load them).
    """
    import pandas as pd

    facts = pd.read_csv(FACTS_PATH)
    best = [next(iter(PRETRAINED.get(name, ())), None) for name in facts["name"]]
    facts["imagenet_weights"] = [weights.source if weights else "" for weights in best]
    facts["imagenet_accuracy"] = [weights.top1 if weights else math.nan for weights in best]
    facts["weights_tested"] = [weights is not None and weights.tested for weights in best]
    return facts


def model_options(name: str) -> dict[str, object]:
    """Returns {option: default}, the options that `build_model` takes for this model besides its own arguments."""
    parameters = inspect.signature(family_of(name).load().build).parameters.values()
    keyword_only = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    return {option: default for option, default in keyword_only.items() if option != "dropout"}


def check_model(name: str, image_size: Sequence[int], options: dict) -> None:
    """Raises ModelError if a model cannot be built at this size with these options, as far as a quick check can tell.

    It finds such mistakes before the pictures are read.
    """
    _, image_size = _check_sizes(resolve_name(name), 1, image_size)
    _check_options(resolve_name(name), options)
    check_size = getattr(family_of(name).load(), "check_size", None)  # only vit has one, for its patches
    if check_size is not None:
        check_size(image_size, **options)


def build_model(
    name: str,
    num_classes: int,
    image_size: Sequence[int] | None = None,
    task: str = "multiclass",
    weights=None,
    normalization: str | Sequence[Sequence[float]] | None = None,
    activation: str | None = "task",
    dropout: float | None = None,
    class_names: Sequence[str] | None = None,
    **options,
):
    """Returns an uncompiled keras.Model that maps raw pixels to probabilities.

    Its layers are "images" -> "normalize" -> "backbone" (a model of its own, which can be frozen or
    trained at another rate) -> "pool" -> "dropout" -> "head" (logits) -> "probs". From "pool" on it
    computes in float32, whatever Keras' dtype policy is.

    Args:
      name: one of `list_models()`; "efficientnet_b0" and "ResNet-18" are understood.
      num_classes: number of outputs, at least 1.
      image_size: (height, width) in pixels; None: the size at which the model was published.
      task: "multiclass" (softmax) or "multilabel" (sigmoid).
      weights: None for random weights, or what `kmed.models.weights.load_weights` takes: "imagenet",
        a safetensors file or folder, a PyTorch file, a .keras file, an earlier run, "hf://user/repository".
      normalization: "imagenet", "unit" (pixels / 255), or (mean, std) of three numbers each, for pixels
        in [0, 1]; None: that of the weights, or "imagenet" if they have none.
      activation: "task", or None for logits.
      dropout: rate in [0, 1) before the head; in vit throughout the transformer. None: as published.
      class_names: the classes in the order of the outputs. The head of weights for other classes is then not used.
      options: options of the model's family, see `model_options(name)`.
    Input: uint8 or float (N, height, width, 3) in [0, 255]. Output: float32 (N, num_classes).
    Raises: ModelError: an unknown name, option or value. WeightsError: weights that do not fit.
    Example:
      >>> model = build_model("resnet18", 4, image_size=(120, 160))
    """
    name = resolve_name(name)
    num_classes, image_size = _check_sizes(name, num_classes, image_size)
    _check_options(name, options)
    last = _activation(task, activation)
    rate = MODELS[name].dropout if dropout is None else dropout
    mean, std = _check_normalization(normalization, weights, name)
    if class_names is not None and len(class_names) != num_classes:
        raise ModelError(f"class_names must be {num_classes} names. Received: {', '.join(map(str, class_names))}.")

    import keras

    from kmed.models.layers import Normalize, check_fraction

    check_fraction(dropout=rate)
    family, rate_before_head = family_of(name), rate
    if family.dropout_throughout:
        options, rate_before_head = {**options, "dropout": rate}, 0.0
    images = keras.Input((*image_size, 3), dtype="float32", name="images")  # (N, H, W, 3)
    x = Normalize(mean, std, name="normalize")(images)
    x = family.load().build(name, image_size, **options)(x)  # (N, h, w, D), or tokens (N, 1 + P, D)
    model = keras.Model(images, _head(x, num_classes, rate_before_head, last), name=name)
    if weights is not None:
        _load(model, weights, class_names)
    return model


def _head(features, num_classes: int, rate: float, activation: str):
    """Returns the output of the head, in float32: (N, h, w, D) or (N, 1 + P, D) -> (N, num_classes)."""
    import keras

    from kmed.models.layers import ClassToken

    pool = ClassToken if len(features.shape) == 3 else keras.layers.GlobalAveragePooling2D
    x = pool(dtype="float32", name="pool")(features)  # (N, D)
    x = keras.layers.Dropout(rate, dtype="float32", name="dropout")(x)
    x = keras.layers.Dense(num_classes, dtype="float32", name="head")(x)  # (N, num_classes)
    return keras.layers.Activation(activation, dtype="float32", name="probs")(x)


def _load(model, weights, class_names) -> None:
    """Loads weights into a new model, and logs what was changed on the way."""
    from kmed.models.weights import load_weights

    for note in load_weights(model, weights, class_names):
        say(note)


def _check_sizes(name: str, num_classes, image_size) -> tuple[int, tuple[int, int]]:
    if isinstance(num_classes, bool) or not hasattr(num_classes, "__index__") or num_classes < 1:
        raise ModelError(f"num_classes must be an integer of at least 1. Received: num_classes={num_classes!r}")
    sides = MODELS[name].image_size if image_size is None else image_size
    min_side = family_of(name).min_side
    is_pair = isinstance(sides, Sequence) and len(sides) == 2 and all(hasattr(side, "__index__") for side in sides)
    if not is_pair or min(sides) < min_side:
        raise ModelError(
            f"image_size must be (height, width) in pixels, at least {min_side} each for {name}. "
            f"Received: image_size={image_size!r}"
        )
    return int(num_classes), (int(sides[0]), int(sides[1]))


def _check_options(name: str, options: dict) -> None:
    legal = model_options(name)
    for option in options:
        if option not in legal:
            hint = suggest(option, legal)
            raise ModelError(f"{name} has no option {option!r}.{hint} Options: {', '.join(legal) or 'none'}.")


def _activation(task: str, activation: str | None) -> str:
    from kmed.tasks import TASKS

    if task not in TASKS:
        raise ModelError(f"task must be one of {', '.join(TASKS)}.{suggest(task, TASKS)} Received: task={task!r}")
    if activation not in ("task", None):
        raise ModelError(f'activation must be "task" or None (logits). Received: activation={activation!r}')
    return "linear" if activation is None else TASKS[task].activation


def _check_normalization(normalization, weights, name: str):
    """Returns (mean, std): those requested, else those of the weights, else ImageNet's."""
    requested = None if normalization is None else _mean_and_std(normalization)
    if weights is None:
        return requested or NORMALIZATIONS["imagenet"]
    from kmed.models.weight_files import normalization_of, same_normalization

    own = normalization_of(weights, name)
    if requested and own and not same_normalization(requested, own):
        raise ModelError(
            f"The weights were trained with mean {list(own[0])} and std {list(own[1])}, so another normalization "
            f"would harm them. Received: normalization={normalization!r}. Leave it out."
        )
    return requested or own or NORMALIZATIONS["imagenet"]


def _mean_and_std(normalization):
    if isinstance(normalization, str):
        if normalization not in NORMALIZATIONS:
            hint = suggest(normalization, NORMALIZATIONS)
            raise ModelError(f"normalization must be imagenet, unit or (mean, std).{hint} Received: {normalization!r}")
        return NORMALIZATIONS[normalization]
    try:
        mean, std = (tuple(float(value) for value in values) for values in normalization)
    except (TypeError, ValueError):
        mean, std = (), ()
    if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise ModelError(
            "normalization must be imagenet, unit, or (mean, std) with three numbers each and std above 0. "
            f"Received: normalization={normalization!r}"
        )
    return mean, std
