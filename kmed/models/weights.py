"""Loading of weights (safetensors with PyTorch's names, a Keras file, an earlier run) into a model of kmed."""

import dataclasses
import pathlib

import keras
import numpy as np

from kmed.errors import ModelError, RunError, WeightsError, shorten
from kmed.models import torch_files, vit
from kmed.models.keras_file import load_model, read_settings
from kmed.models.registry import ENSEMBLE, MODELS, family_of, family_of_checkpoint, resolve_name
from kmed.models.weight_files import WeightSource, class_names_of, locate_weights, normalization_of, same_normalization

# {last part of a Keras variable's path: last part of its name in PyTorch}
LEAVES = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


@dataclasses.dataclass(frozen=True, eq=False)  # comparing variables would compare their values
class Slot:
    """A variable, its name in the file, and the layout of its array there."""

    variable: keras.Variable
    key: str
    kind: str  # "keras", or the PyTorch layout: "conv", "depthwise", "dense", "plain"

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the array in the file."""
        order = {"conv": (3, 2, 0, 1), "depthwise": (2, 3, 0, 1), "dense": (1, 0)}.get(self.kind)
        shape = tuple(self.variable.shape)
        return tuple(shape[axis] for axis in order) if order else shape

    def to_keras(self, array: np.ndarray) -> np.ndarray:
        """Returns the array in Keras' layout, float32."""
        order = {"conv": (2, 3, 1, 0), "depthwise": (2, 3, 0, 1), "dense": (1, 0)}.get(self.kind)
        return np.asarray(array.transpose(order) if order else array, "float32")


def load_weights(model: keras.Model, source, class_names=None) -> list[str]:
    """Loads weights into `model` and returns notes, one line about each part that was not simply copied.

    If the checkpoint has no head, or one for other classes, the model's head is initialised anew. A head for the
    same classes in another order is reordered. The positions of a vision transformer are resized to the model's
    grid. Everything else must match by name and shape.

    Args:
      model: what `build_model` returned.
      source: "imagenet"; a .safetensors file, or a folder with model.safetensors (and timm's config.json),
        with timm's or torchvision's names, float32 or 16 bits; a .pth, .pt, .bin or .ckpt file with a PyTorch
        state dict of such names; a .keras file or an earlier run's folder; "hf://user/repository" on the
        Hugging Face hub.
      class_names: the classes in the order of the model's outputs; None: only their number is compared.
    Returns: list of str.
    Raises: WeightsError: there are no such weights, the download failed, or a tensor is missing,
      superfluous, of another shape or not finite; the model is then unchanged.
    """
    found = locate_weights(source, _name_of(model))
    notes = [found.origin] if found.origin else []
    if found.path.suffix == ".keras":
        arrays, slots, shape = _read_keras(found, model)
    else:
        slots, shape = _torch_slots(model), _input_size(found)
        arrays, unwrapped = _with_known_names(_read_arrays(found, model.name), model)
        notes += unwrapped
    arrays, resized = _resize_positions(arrays, slots, model, shape)
    values, head = _match(arrays, slots, model, found, class_names)
    notes += resized + _note_normalization(model, found) + head
    for variable, value in values:
        variable.assign(value)
    return notes


def check_weights(source, name: str) -> WeightSource:
    """Returns the file of `source`, once it can be read and is of the family of the model `name`.

    Raises: WeightsError: there are no such weights, they are damaged, or they are those of another family, or of an
      ensemble.
    """
    found = locate_weights(source, name)
    if found.path.suffix != ".keras":
        _read_arrays(found, resolve_name(name))
        return found
    try:
        stored = read_settings(found.path)["config"].get("name")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise WeightsError(f"{found.path} is not a readable Keras model: {shorten(str(error))}.") from None
    _refuse_ensemble(stored, found)
    return found


def _refuse_ensemble(name: str | None, found: WeightSource) -> None:
    if name == ENSEMBLE:
        raise WeightsError(f"{found.path} is an ensemble, from which no training can start. Give one of its members.")


def _name_of(model: keras.Model) -> str:
    try:
        return resolve_name(model.name)
    except ModelError:
        raise WeightsError(
            f"Weights are loaded into models of build_model. Received: a model named {model.name!r}."
        ) from None


def _check_family(theirs: str | None, name: str, found: WeightSource) -> None:
    """Raises WeightsError if the weights are those of another family than that of the model `name`."""
    ours = MODELS[name].family
    if theirs in (None, ours):
        return
    names = ", ".join(other for other, entry in MODELS.items() if entry.family == theirs)
    raise WeightsError(
        f"The weights in {found.path} are those of the family {theirs} and do not fit {name}. "
        f"Give weights of the family {ours}, or one of the models {names}."
    )


def _read_arrays(found: WeightSource, name: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a safetensors or PyTorch file under its own names, without counters of batches.

    Raises: WeightsError: the file is damaged, or holds weights of another family than that of the model `name`.
    """
    if found.path.suffix in torch_files.SUFFIXES:
        arrays = torch_files.read_torch_file(found.path)
    else:
        arrays = read_safetensors(found.path)
    arrays = {key: array for key, array in arrays.items() if not key.endswith("num_batches_tracked")}
    _check_family(family_of_checkpoint(arrays), name, found)
    return arrays


def _with_known_names(arrays, model: keras.Model) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns (the arrays under timm's names, a note for each thing that was removed).

    DataParallel puts "module." before each name, Lightning "model.", torch.compile "_orig_mod."; what has other names
    is no part of the network, such as the weights of a loss.
    """
    family = family_of(model.name)
    prefix = family.prefix_in(arrays) or ""
    inner = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
    notes = [f"The names of the weights begin with {prefix!r}, which was removed."] if prefix else []
    if others := sorted(key for key in arrays if not key.startswith(prefix)):
        names = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        notes += [f"Weights with other names were left out: {names}."]
    return getattr(family.load(), "rename", dict)(inner), notes


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns {name: array} of a safetensors file. Raises WeightsError if it is damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:  # a type that NumPy does not have
        raise WeightsError(f"{path} is not a readable safetensors file: {error}.") from None


def _torch_slots(model: keras.Model) -> list[Slot]:
    """Returns a slot for each weight, under PyTorch's names."""
    family = family_of(model.name).load()
    backbone = model.get_layer("backbone")
    depthwise = {layer.kernel.path for layer in backbone.layers if isinstance(layer, keras.layers.DepthwiseConv2D)}
    slots = []
    for variable in model.weights:
        layer, _, leaf = variable.path.rpartition("/")
        prefix = family.HEAD if layer == "head" else family.torch_name(layer)
        kind = {4: "conv", 2: "dense"}.get(len(variable.shape), "plain")
        kind = "depthwise" if variable.path in depthwise else kind
        slots.append(Slot(variable, f"{prefix}.{LEAVES.get(leaf, leaf)}".lstrip("."), kind))
    return slots


def _read_keras(found: WeightSource, model: keras.Model):
    """Returns (arrays by path, slots under Keras' own paths, grid of the positions or None)."""
    try:
        other = load_model(found.path)
    except RunError as error:
        raise WeightsError(str(error)) from error
    _refuse_ensemble(other.name, found)
    _check_family(MODELS[other.name].family if other.name in MODELS else None, model.name, found)
    arrays = {variable.path: keras.ops.convert_to_numpy(variable.value) for variable in other.weights}
    slots = [Slot(variable, variable.path, "keras") for variable in model.weights]
    tokens = _tokens_of(other)
    return arrays, slots, tokens.grid if tokens else None


def _tokens_of(model: keras.Model):
    """Returns the layer that holds a transformer's positions, or None."""
    backbones = [layer for layer in model.layers if layer.name == "backbone"]
    inner = [layer for layer in backbones[0].layers if layer.name == "tokens"] if backbones else []
    return inner[0] if inner else None


def _note_normalization(model: keras.Model, found: WeightSource) -> list[str]:
    theirs = normalization_of(found)
    own = model.get_layer("normalize")
    if theirs is None and found.path.suffix in torch_files.SUFFIXES:
        return [
            f"The weights do not say how their pixels were scaled: mean {list(own.mean)} and std {list(own.std)} are "
            "taken (model.normalization)."
        ]
    if theirs is None or same_normalization((own.mean, own.std), theirs):
        return []
    return [
        f"The weights were trained with mean {list(theirs[0])} and std {list(theirs[1])}, but this model scales its "
        f"pixels with {list(own.mean)} and {list(own.std)}: expect worse features."
    ]


def _input_size(found: WeightSource) -> tuple[int, int] | None:
    """Returns (height, width) of the images that the weights were trained on, or None if it is unknown."""
    size = found.trained_on.get("input_size")
    if isinstance(size, list) and len(size) == 3 and all(isinstance(side, int) and side > 0 for side in size):
        return size[1], size[2]
    return None


def _resize_positions(arrays, slots, model: keras.Model, shape) -> tuple[dict, list[str]]:
    """Returns the arrays with learned positions resized to the model's grid, and a note if that was needed.

    Args:
      shape: (height, width) of the weights' images or grid, if known.
    """
    slot = next((slot for slot in slots if slot.variable.path == "tokens/pos_embed"), None)
    if slot is None:
        return arrays, []
    positions = arrays.get(slot.key)
    if positions is None or positions.ndim != 3 or positions.shape[2] != slot.variable.shape[2]:
        return arrays, []  # _match names what does not fit
    num_patches, new_grid = positions.shape[1] - 1, _tokens_of(model).grid
    old_grid = _old_grid(num_patches, new_grid, shape)
    if old_grid is None:
        raise WeightsError(
            f"{slot.key} holds {num_patches} positions, but their number of rows is unknown. "
            "Put timm's config.json with input_size beside the file."
        )
    if old_grid == new_grid:
        return arrays, []
    resized = vit.resize_positions(positions.astype("float32"), old_grid, new_grid)
    note = f"Positions were resized from {old_grid[0]}x{old_grid[1]} to {new_grid[0]}x{new_grid[1]} patches."
    return {**arrays, slot.key: resized}, [note]


def _old_grid(count: int, new_grid: tuple[int, int], shape: tuple[int, int] | None) -> tuple[int, int] | None:
    """Returns (rows, columns) of `count` patches, shaped as `shape`, else as `new_grid`, else as a square."""
    for height, width in filter(None, (shape, new_grid, (1, 1))):
        rows = round((count * height / width) ** 0.5)
        if rows and count % rows == 0 and rows * width == (count // rows) * height:
            return rows, count // rows
    return None


def _match(arrays, slots, model: keras.Model, found: WeightSource, class_names):
    """Returns ([(variable, value)], notes) once every tensor has been checked. Raises WeightsError."""
    architecture = found.config.get("architecture")
    origin = f" {found.path} says that it holds {architecture}." if architecture else f" File: {found.path}."
    new_head = [slot for slot in slots if slot.variable.path.startswith("head/")]
    theirs = class_names_of(found)
    notes = _note_head(arrays, new_head, model) or _note_other_classes(theirs, class_names)
    slots_left = [slot for slot in slots if not (notes and slot in new_head)]
    for slot in slots_left:
        if slot.key not in arrays:
            raise WeightsError(f"{model.name} needs {slot.key!r}, which the weights do not have.{origin}")
    if extra := sorted(set(arrays) - {slot.key for slot in slots}):
        raise WeightsError(f"The weights have {extra[0]!r}, for which {model.name} has no place.{origin}")
    for slot in slots_left:
        array = arrays[slot.key]
        if array.shape != slot.stored_shape:
            raise WeightsError(
                f"{slot.key!r} has shape {array.shape}, but {model.name} needs {slot.stored_shape}.{origin}"
            )
        if not np.isfinite(array.astype("float32")).all():
            raise WeightsError(f"{slot.key!r} holds values that are not finite.{origin}")
    values = [(slot.variable, slot.to_keras(arrays[slot.key])) for slot in slots_left]
    if notes:
        head = model.get_layer("head")
        values += [
            (head.kernel, head.kernel_initializer(head.kernel.shape)),
            (head.bias, head.bias_initializer(head.bias.shape)),
        ]
        return values, notes
    order, notes = _match_classes(theirs, class_names)
    if order is not None:
        in_head = {slot.variable.path for slot in new_head}
        values = [(variable, value[..., order] if variable.path in in_head else value) for variable, value in values]
    return values, notes


def _note_head(arrays, slots, model: keras.Model) -> list[str]:
    """Returns a note if the checkpoint has no head, or one for another number of classes."""
    num_classes = model.get_layer("head").units
    if not any(slot.key in arrays for slot in slots):
        return [f"The weights have no head: the head for {num_classes} classes is initialised anew."]
    kernel, bias = (next(slot for slot in slots if slot.variable.path == path) for path in ("head/kernel", "head/bias"))
    if not {kernel.key, bias.key} <= set(arrays):
        return []  # half a head is a damaged file: _match names the missing key
    theirs = arrays[bias.key].size
    expected = list(kernel.stored_shape)
    expected[0 if kernel.kind == "dense" else 1] = theirs
    if theirs == num_classes or list(arrays[kernel.key].shape) != expected:
        return []
    return [f"The weights' head is for {theirs} classes: the head for {num_classes} is initialised anew."]


def _note_other_classes(theirs, class_names) -> list[str]:
    """Returns a note if the checkpoint's head is known to be for other classes than the model's."""
    if theirs is None or class_names is None or set(theirs) == set(class_names):
        return []
    ours = ", ".join(map(str, class_names))
    return [f"The weights' head is for other classes ({', '.join(theirs)}): the head for {ours} is initialised anew."]


def _match_classes(theirs, class_names) -> tuple[list[int] | None, list[str]]:
    """Returns (order, notes) for a head that is kept: where the model's classes stand in it; None if it may stay."""
    if class_names is None:
        return None, []
    ours = list(map(str, class_names))
    if theirs is None:
        return None, [f"The weights do not name their classes: their head is taken to be for {', '.join(ours)}."]
    if list(theirs) == ours:
        return None, []
    note = f"The weights' head is for the same classes in another order ({', '.join(theirs)}): it is reordered."
    return [theirs.index(name) for name in ours], [note]
