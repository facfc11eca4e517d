"""The table of models: what can be built, at which size, and which ImageNet weights fit it."""

import dataclasses
import importlib
from types import ModuleType

from kmed.errors import ModelError, suggest


@dataclasses.dataclass(frozen=True)
class Entry:
    """One model.

    Attributes:
      family: the module of kmed.models that builds it.
      image_size: (height, width) it was published at; any other can be asked for.
      imagenet: the Hugging Face repository whose weights fit it exactly, or None.
      dropout: rate before the head, as published; in vit throughout the transformer.
    """

    family: str
    image_size: tuple[int, int] = (224, 224)
    imagenet: str | None = None
    dropout: float = 0.0


def _efficientnet(side: int, dropout: float, imagenet: str | None) -> Entry:
    return Entry("efficientnet", (side, side), imagenet, dropout)


# Resolution and dropout of EfficientNet: Tan & Le (2019) and their code. The ImageNet weights of b6 and b7
# exist in TensorFlow's padding only, which this project's convolutions do not have.
MODELS = {
    "resnet18": Entry("resnet", imagenet="timm/resnet18.a1_in1k"),
    "resnet34": Entry("resnet", imagenet="timm/resnet34.a1_in1k"),
    "resnet50": Entry("resnet", imagenet="timm/resnet50.a1_in1k"),
    "resnet101": Entry("resnet", imagenet="timm/resnet101.a1_in1k"),
    "resnet152": Entry("resnet", imagenet="timm/resnet152.a1_in1k"),
    "densenet121": Entry("densenet", imagenet="timm/densenet121.ra_in1k"),
    "densenet161": Entry("densenet", imagenet="timm/densenet161.tv_in1k"),
    "densenet169": Entry("densenet", imagenet="timm/densenet169.tv_in1k"),
    "densenet201": Entry("densenet", imagenet="timm/densenet201.tv_in1k"),
    "efficientnetb0": _efficientnet(224, 0.2, "timm/efficientnet_b0.ra_in1k"),
    "efficientnetb1": _efficientnet(240, 0.2, "timm/efficientnet_b1.ft_in1k"),
    "efficientnetb2": _efficientnet(260, 0.3, "timm/efficientnet_b2.ra_in1k"),
    "efficientnetb3": _efficientnet(300, 0.3, "timm/efficientnet_b3.ra2_in1k"),
    "efficientnetb4": _efficientnet(380, 0.4, "timm/efficientnet_b4.ra2_in1k"),
    "efficientnetb5": _efficientnet(456, 0.4, "timm/efficientnet_b5.sw_in12k_ft_in1k"),
    "efficientnetb6": _efficientnet(528, 0.5, None),
    "efficientnetb7": _efficientnet(600, 0.5, None),
    "vit": Entry("vit", (240, 320), dropout=0.3),
}


def resolve_name(name: str) -> str:
    """Returns the name under which `name` is registered; "efficientnet_b0" and "ResNet-18" are understood.

    Raises: ModelError: no such model; the nearest name is given.
    """
    plain = str(name).strip().lower().replace("_", "").replace("-", "")
    if plain in MODELS:
        return plain
    raise ModelError(f"There is no model {name!r}.{suggest(plain, MODELS)} Models: {', '.join(MODELS)}.")


def family_of(name: str) -> ModuleType:
    """Returns the module that builds `name`; it imports Keras.

    Such a module holds `build(name, image_size, **options)`, `torch_name(layer_name)` and `HEAD`,
    the head's name in PyTorch checkpoints.
    """
    return importlib.import_module(f"kmed.models.{MODELS[resolve_name(name)].family}")
