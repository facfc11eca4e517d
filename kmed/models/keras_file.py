"""`.keras` files, loaded only where they hold no code of others."""

import json
import pathlib
import zipfile

from kmed.errors import RunError

# Where the classes of a model may come from. Others are code that the file asks to be imported.
_KNOWN_MODULES = ("keras", "keras_hub", "kmed", "builtins")


def load_model(path):
    """Returns the keras.Model of a `.keras` file, kmed's own layers known to it.

    Only layers of Keras, KerasHub and kmed are loaded: a Lambda or a class from elsewhere is code of whoever
    wrote the file.

    Raises: RunError: the file is missing, damaged or no Keras model, or it asks for other code.
    """
    import keras

    import kmed.models.layers  # noqa: F401 - registers the layers that the file names

    path = pathlib.Path(path)
    if not path.exists():
        raise RunError(f"There is no model {path}. Give a .keras file, such as a run folder's model.keras.")
    _check_classes(path)
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # of a damaged file Keras, h5py and zipfile raise whatever the damage leads to
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(f"{path} cannot be loaded: {reason}") from error


def _check_classes(path: pathlib.Path) -> None:
    """Raises RunError where a .keras file names a Lambda or a class of an unknown module; nothing is imported."""
    try:
        with zipfile.ZipFile(path) as archive:
            settings = json.loads(archive.read("config.json"))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise RunError(f"{path} cannot be loaded: it is no .keras file ({error}).") from None
    for module, name in _classes(settings):
        foreign = module is not None and module.split(".")[0] not in _KNOWN_MODULES
        if name == "Lambda" or foreign:
            origin = f"of the module {module}" if foreign else "which holds code of its own"
            raise RunError(
                f"{path} is not loaded: it holds {name}, {origin}, and would run code of whoever wrote the file. "
                "Give a model of layers of Keras, KerasHub and kmed."
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
