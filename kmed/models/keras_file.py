"""Saving and loading of `.keras` files, which are refused if they contain foreign code."""

import contextlib
import pathlib
import tempfile
import zipfile

from kmed.errors import RunError
from kmed.files import replacing, temporary_folder
from kmed.reading import check_unpacked_size, parse_json
from kmed.runs import Run
from kmed.tasks import get_task

# The modules from which a model's classes may come. Any other would be code that the file has imported.
_KNOWN_MODULES = ("keras", "keras_hub", "kmed", "builtins")
_LAYERS = ("normalize", "backbone", "pool", "head", "probs")  # of every model that `build_model` makes
_COMBINED = ("pool", "head", "probs")  # of a model that `kmed.models.combined.combine` makes


def save_model(model, path) -> None:
    """Writes a keras.Model as a `.keras` file, whole or not at all."""
    with replacing(path) as temporary, _temporary_files_cleared():
        model.save(temporary)


def load_model(path):
    """Returns the keras.Model of a `.keras` file; kmed's own layers are known.

    Only layers of Keras, KerasHub and kmed are loaded: a Lambda layer or a class from another module would run
    code of the file's author.

    Raises: RunError: the file is missing, damaged or not a Keras model, or it needs other code.
    """
    import keras

    import kmed.models.combined  # noqa: F401 - registers the layers that the file names
    import kmed.models.layers  # noqa: F401

    path = pathlib.Path(path)
    if not path.exists():
        raise RunError(f"There is no model {path}. Give a .keras file, such as a run folder's model.keras.")
    _refuse_foreign_code(path)
    try:
        with _temporary_files_cleared():
            return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras, h5py and zipfile raise many kinds of errors for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(f"{path} cannot be loaded: {reason}") from error


@contextlib.contextmanager
def _temporary_files_cleared():
    """Lets Keras unpack into a temporary folder of kmed, which the next command removes if this process is killed."""
    with temporary_folder() as folder:
        before, tempfile.tempdir = tempfile.tempdir, str(folder)
        try:
            yield
        finally:
            tempfile.tempdir = before


def _refuse_foreign_code(path: pathlib.Path) -> None:
    """Raises RunError if a .keras file names a Lambda or a class of an unknown module; imports nothing."""
    try:
        classes = list(_classes(read_settings(path)))
    except ValueError as error:
        raise RunError(f"{path} cannot be loaded: it is not a .keras file ({error}).") from None
    for module, name in classes:
        foreign = module is not None and str(module).split(".")[0] not in _KNOWN_MODULES
        if name == "Lambda" or foreign:
            origin = f"from the module {module}" if foreign else "which contains code of its own"
            raise RunError(
                f"{path} is not loaded: it contains {name}, {origin}, and would run code of the file's author. "
                "Give a model made of layers of Keras, KerasHub and kmed only."
            )


def read_settings(path) -> dict:
    """Returns the settings in a .keras file, from which Keras builds the model. Raises ValueError if it has none."""
    try:
        with zipfile.ZipFile(path) as archive:
            check_unpacked_size(path, archive)
            return parse_json(archive.read("config.json").decode("utf-8"))
    except Exception as error:  # zipfile raises many kinds of errors for damaged files
        raise ValueError((str(error).splitlines() or [type(error).__name__])[0]) from None


def load_run_model(run: Run):
    """Returns a run's keras.Model, which averages over the views of a picture that `evaluate.views` names.

    Raises: RunError: as `load_plain_model` does.
    """
    from kmed.models.combined import with_views

    config = run.read_config()
    return with_views(load_plain_model(run), get_task(config.task).activation, config.evaluate.views)


def load_plain_model(run: Run):
    """Returns a run's keras.Model as it is stored, which sees a picture only as it is.

    Raises: RunError: as `load_model` does; or the model does not take pictures of the run's size, does not give one
      probability per class, lacks one of the layers of kmed's models, or has weights that are not finite numbers.
    """
    import numpy as np

    from kmed.models.combined import is_combined

    model, classes = load_model(run.model), run.read_classes()
    expected = {"input": (None, *classes.image_size, 3), "output": (None, len(classes.class_names))}
    for side, shape in expected.items():
        found = getattr(model, f"{side}_shape", None)
        if found != shape:
            raise RunError(f"{run.model} has an {side} of shape {found}, but {run.classes} asks for {shape}.")
    layers = {layer.name: layer for layer in model.layers}
    if missing := [name for name in (_COMBINED if is_combined(model) else _LAYERS) if name not in layers]:
        raise RunError(f"{run.model} is not a model of kmed: it has no layer {missing[0]!r}.")
    activation = get_task(classes.task).activation
    if getattr(getattr(layers["probs"], "activation", None), "__name__", None) != activation:
        raise RunError(f"{run.model} does not end in {activation}, which {classes.task} needs.")
    for weight in model.weights:
        if not np.isfinite(weight.numpy()).all():
            raise RunError(f"{run.model} cannot be used: its weight {weight.path} holds values that are not finite.")
    return model


def _classes(settings):
    """Yields (module or None, class name) of all objects in a .keras file's settings."""
    if isinstance(settings, dict):
        if isinstance(settings.get("class_name"), str):
            yield settings.get("module"), settings["class_name"]
        for value in settings.values():
            yield from _classes(value)
    elif isinstance(settings, list):
        for value in settings:
            yield from _classes(value)
