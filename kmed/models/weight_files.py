"""Files of weights, found by path, earlier run or Hugging Face repository, and the configuration beside them."""

import dataclasses
import pathlib

import numpy as np

from kmed.errors import WeightsError, shorten
from kmed.models import torch_files
from kmed.models.keras_file import read_settings
from kmed.models.pretrained import INSTALL, PRETRAINED
from kmed.models.registry import resolve_name
from kmed.progress import say
from kmed.reading import read_json

SAFETENSORS = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class WeightSource:
    """A file of weights.

    Attributes:
      path: the file.
      config: the content of timm's config.json beside it; {} without one.
      origin: a sentence on where ImageNet weights come from; "" for others.
    """

    path: pathlib.Path
    config: dict
    origin: str = ""

    @property
    def trained_on(self) -> dict:
        """timm's facts of the training (mean, std, input_size); older files have them at the top level."""
        return {**self.config, **(self.config.get("pretrained_cfg") or {})}


def locate_weights(source, name: str | None = None) -> WeightSource:
    """Returns the file that `source` names; one on the Hugging Face hub is downloaded.

    Args:
      source: as in `kmed.models.weights.load_weights`.
      name: the model, needed for "imagenet" only.
    Raises: WeightsError: there is no such file.
    """
    if str(source) == "imagenet":
        if name is None:
            raise WeightsError('The weights "imagenet" belong to a model. Received: name=None. Give a model\'s name.')
        return _find_imagenet(resolve_name(name))
    if str(source).startswith("hf://"):
        return _fetch(str(source).removeprefix("hf://"))
    path = pathlib.Path(source)
    if path.is_dir():
        inside = [path / file for file in ("model.keras", SAFETENSORS) if (path / file).is_file()]
        if not inside:
            raise WeightsError(f"The folder {path} holds neither model.keras nor {SAFETENSORS}.")
        path = inside[0]
    if not path.is_file():
        raise WeightsError(
            f"There are no weights at {path}. Give imagenet, a file, an earlier run's folder, or hf://user/repository."
        )
    if path.suffix not in (".keras", ".safetensors", *torch_files.SUFFIXES):
        raise WeightsError(
            f"Weights are read from .safetensors, .keras and PyTorch files ({', '.join(torch_files.SUFFIXES)}). "
            f"Received: {path}."
        )
    config = path.with_name("config.json")
    return WeightSource(path, _read_json(config) if path.suffix != ".keras" and config.is_file() else {})


def is_earlier_run(source) -> bool:
    """Returns whether `source` names an earlier run of kmed or its model, and not other weights."""
    path = pathlib.Path(source)
    if str(source) == "imagenet":  # never a folder of that name, as in locate_weights
        return False
    return path.suffix == ".keras" or (path / "model.keras").is_file()


def _find_imagenet(name: str) -> WeightSource:
    """Returns the ImageNet weights of a model: an installed package, the cache of the hub, or the network."""
    choices = PRETRAINED.get(name, ())
    if not choices:
        raise WeightsError(f"There are no ImageNet weights for {name}. Models that have them: {', '.join(PRETRAINED)}.")
    for choice in choices:
        if (path := choice.installed()) is not None:
            return WeightSource(path, choice.config, choice.describe(name, "installed"))
    hub, repository = next((choice, choice.repository) for choice in choices if choice.repository)
    found, how = _in_cache(repository), "cached"
    if found is None:
        say(f"Asking the Hugging Face hub for {hub.source} ({hub.megabytes:.0f} MB).")
        try:
            found, how = _fetch(repository), "downloaded"
        except WeightsError as error:
            raise WeightsError(f"{error} {_without_network(name)}") from None
    return dataclasses.replace(found, origin=hub.describe(name, how))


def _without_network(name: str) -> str:
    """Returns what to do about weights of `name` that cannot be fetched."""
    packaged = [other for other, choices in PRETRAINED.items() if any(choice.package for choice in choices)]
    if name in packaged:
        return f"Or install them: {INSTALL}"
    return f"Or take a model whose weights can be installed ({', '.join(packaged)}): {INSTALL}"


def normalization_of(source, name: str | None = None):
    """Returns (mean, std), three numbers each, that scaled the pixels in the weights' training; None if unknown.

    Args:
      source: as in `kmed.models.weights.load_weights`, or what `locate_weights` returned.
      name: the model, needed for "imagenet" only.
    """
    found = source if isinstance(source, WeightSource) else locate_weights(source, name)
    if found.path.suffix == ".keras":
        return _normalization_in_keras(found.path)
    values = found.trained_on
    if "mean" not in values or "std" not in values:
        return None
    try:
        mean, std = (tuple(float(number) for number in values[key]) for key in ("mean", "std"))
    except (TypeError, ValueError):
        mean = std = ()
    if len(mean) != 3 or len(std) != 3 or not np.isfinite([mean, std]).all() or min(std) <= 0:
        raise WeightsError(f"mean and std in the config.json beside {found.path} must be three numbers each.")
    return mean, std


def class_names_of(found: WeightSource) -> tuple[str, ...] | None:
    """Returns the classes of the weights' head, in order: those of the run, or timm's label_names; None if unknown.

    Raises: WeightsError: the classes.json beside a run's model is damaged.
    """
    if found.path.suffix == ".keras":
        file = found.path.with_name("classes.json")
        if not file.is_file():
            return None
        names = _read_json(file).get("class_names")
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise WeightsError(f"{file} does not name the classes of the run. Restore it, or give other weights.")
        return tuple(names)
    names = found.trained_on.get("label_names")
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def same_normalization(one, other) -> bool:
    """Returns whether two pairs (mean, std) are equal up to rounding."""
    return np.shape(one) == np.shape(other) and np.allclose(one, other, rtol=0, atol=1e-4)


def _in_cache(repository: str) -> WeightSource | None:
    """Returns what an earlier download left in the cache of the Hugging Face hub, or None."""
    import huggingface_hub

    config, path = (huggingface_hub.try_to_load_from_cache(repository, file) for file in ("config.json", SAFETENSORS))
    if not isinstance(config, str) or not isinstance(path, str):  # None, or an object that says it does not exist
        return None
    return WeightSource(pathlib.Path(path), _read_json(pathlib.Path(config)))


def _fetch(repository: str) -> WeightSource:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils import logging as hub_logging

    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()  # it would announce each of its attempts
    try:
        config = huggingface_hub.hf_hub_download(repository, "config.json")
        path = huggingface_hub.hf_hub_download(repository, SAFETENSORS)
    except (OSError, ValueError) as error:
        unreachable = isinstance(error, LocalEntryNotFoundError)
        reason = "no answer from the hub, and not in its cache" if unreachable else str(error).strip().splitlines()[0]
        raise WeightsError(
            f"The weights hf://{repository} could not be fetched ({reason}). Without a network, give a folder "
            f"with that repository's {SAFETENSORS} and config.json."
        ) from error
    finally:
        hub_logging.set_verbosity(verbosity)
    return WeightSource(pathlib.Path(path), _read_json(pathlib.Path(config)))


def _read_json(path: pathlib.Path) -> dict:
    value = read_json(path, WeightsError)
    if not isinstance(value.get("pretrained_cfg") or {}, dict):
        raise WeightsError(f"{path}: pretrained_cfg must be an object. Received: {shorten(value['pretrained_cfg'])}.")
    return value


def _normalization_in_keras(path: pathlib.Path):
    try:
        settings = read_settings(path)
        scalings = [
            (layer["config"]["mean"], layer["config"]["std"])
            for layer in settings["config"].get("layers", [])
            if layer.get("class_name") == "Normalize"
        ]
        return tuple(tuple(map(float, values)) for values in scalings[0]) if scalings else None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} is not a readable Keras model: {shorten(str(error))}.") from None
