"""Loading of `.keras` files, which are refused if they contain foreign code."""

import json
import pathlib
import zipfile

from kmed.errors import RunError

# The modules from which a model's classes may come. Any other would be code that the file has imported.
_KNOWN_MODULES = ("keras", "keras_hub", "kmed", "builtins")


def load_model(path):
    """Returns the keras.Model of a `.keras` file; kmed's own layers are known.

    Only layers of Keras, KerasHub and kmed are loaded: a Lambda layer or a class from another module would run
    code of the file's author.

    Raises: RunError: the file is missing, damaged or not a Keras model, or it needs other code.
    """
    import keras

    import kmed.models.layers  # noqa: F401 - registers the layers that the file names

    path = pathlib.Path(path)
    if not path.exists():
        raise RunError(f"There is no model {path}. Give a .keras file, such as a run folder's model.keras.")
    _refuse_foreign_code(path)
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras, h5py and zipfile raise many kinds of errors for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(f"{path} cannot be loaded: {reason}") from error


def _refuse_foreign_code(path: pathlib.Path) -> None:
    """Raises RunError if a .keras file names a Lambda or a class of an unknown module; imports nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            settings = json.loads(archive.read("config.json"))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise RunError(f"{path} cannot be loaded: it is not a .keras file ({error}).") from None
    for module, name in _classes(settings):
        foreign = module is not None and module.split(".")[0] not in _KNOWN_MODULES
        if name == "Lambda" or foreign:
            origin = f"from the module {module}" if foreign else "which contains code of its own"
            raise RunError(
                f"{path} is not loaded: it contains {name}, {origin}, and would run code of the file's author. "
                "Give a model made of layers of Keras, KerasHub and kmed only."
            )


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
