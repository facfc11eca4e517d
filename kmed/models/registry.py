"""The tables of models and of their families; each family has a module of its own.

A new family needs a module, a row in FAMILIES, and a row in MODELS for each of its models; a new model of a family
needs a row in MODELS. Importing this module is cheap: Keras is loaded with a family's module.
"""

import dataclasses
import importlib
from collections.abc import Iterable
from types import ModuleType

from kmed import runtime
from kmed.errors import ModelError, suggest

ENSEMBLE = "ensemble"  # stands in the place of a model's name where several models are combined


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of network.

    Attributes:
      module: the module that builds it. It defines `build(name, image_size, **options)`, which returns the backbone;
        `torch_name(layer_name)`; `HEAD`, the head's name in PyTorch checkpoints; and, where they are needed,
        `check_size(image_size, **options)` for sizes of at least `min_side` that are not legal, `rename(arrays)` for
        checkpoints with other names, and `cell_offset(side)` if it depends on the side.
      cpu_dtype: the dtype policy that trains fastest on a CPU with bfloat16 instructions, as measured by
        `scripts/benchmark.py dtype` (results/dtype.csv).
      explained_by: "class_activation" for a convolutional backbone, "relevance" for a transformer.
      min_side: the smallest legal height and width in pixels.
      cell_step, cell_offset: cell i of a convolutional backbone's map is centred at pixel
        cell_step * i + cell_offset.
      dropout_throughout: whether dropout is an option of the backbone instead of a layer before the head.
      marks: names of which each PyTorch checkpoint of the family has one, and no checkpoint of a family below it.
    """

    module: str
    cpu_dtype: str
    explained_by: str = "class_activation"
    min_side: int = 8
    cell_step: int = 32  # the convolutional families halve the picture five times
    cell_offset: float = 0.0  # each halving keeps the even pixels
    dropout_throughout: bool = False
    marks: tuple[str, ...] = ()

    def offset(self, side: int) -> float:
        """Returns the pixel at which the first cell of the last map is centred, along an axis of `side` pixels."""
        own = getattr(self.load(), "cell_offset", None)
        return self.cell_offset if own is None else own(side)

    def prefix_in(self, names: Iterable[str]) -> str | None:
        """Returns what stands before the family's own names in a PyTorch checkpoint; None if it is of another family.

        Example:
          >>> FAMILIES["resnet"].prefix_in(["module.conv1.weight", "module.layer1.0.conv1.weight"])
          'module.'
        """
        found = (name.removesuffix(mark) for name in names for mark in self.marks if f".{name}".endswith(f".{mark}"))
        return next(found, None)

    def load(self) -> ModuleType:
        """Returns the family's module."""
        return importlib.import_module(self.module)


FAMILIES = {
    "resnet": Family("kmed.models.resnet", cpu_dtype="mixed_bfloat16", marks=("layer1.0.conv1.weight",)),
    "densenet": Family(
        "kmed.models.densenet",
        cpu_dtype="mixed_bfloat16",
        min_side=32,  # it rounds down at each halving, while the others reach 1 pixel from any size
        cell_offset=14.0,  # its 2x2 poolings are centred between two pixels, at steps of 4, 8 and 16: 2 + 4 + 8
        marks=("features.denseblock1.denselayer1.conv1.weight", "features.denseblock1.denselayer1.conv.1.weight"),
    ),
    "efficientnet": Family(
        "kmed.models.efficientnet",
        cpu_dtype="float32",
        marks=("blocks.0.0.se.conv_reduce.weight", "_blocks.0._se_reduce.weight", "features.1.0.block.1.fc1.weight"),
    ),
    "efficientnetlite": Family(
        "kmed.models.efficientnet_lite",
        cpu_dtype="float32",
        marks=("blocks.0.0.conv_dw.weight", "_blocks.0._depthwise_conv.weight"),
    ),
    "vit": Family(
        "kmed.models.vit",
        cpu_dtype="mixed_bfloat16",
        explained_by="relevance",
        dropout_throughout=True,
        marks=("cls_token",),
    ),
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One model.

    Attributes:
      family: a key of FAMILIES.
      variant: what distinguishes it from others of its family; a comment above the family's rows explains the numbers.
      image_size: (height, width) at which it was published; it can be built at other sizes.
      dropout: rate before the head, as published; rate throughout the backbone if its family has dropout there.
      published: its parameters with 1,000 classes and the features that its head sees, as torchvision's documentation
        gives them; a test holds the model to them. None: nobody published them.
    """

    family: str
    variant: tuple = ()
    image_size: tuple[int, int] = (224, 224)
    dropout: float = 0.0
    published: tuple[int, int] | None = None


def _efficientnet(side: int, dropout: float, variant: tuple, published: tuple[int, int]) -> Entry:
    return Entry("efficientnet", variant, (side, side), dropout, published)


MODELS = {
    # block, blocks per stage
    "resnet18": Entry("resnet", ("basic_block", (2, 2, 2, 2)), published=(11_689_512, 512)),
    "resnet34": Entry("resnet", ("basic_block", (3, 4, 6, 3)), published=(21_797_672, 512)),
    "resnet50": Entry("resnet", ("bottleneck_block", (3, 4, 6, 3)), published=(25_557_032, 2048)),
    "resnet101": Entry("resnet", ("bottleneck_block", (3, 4, 23, 3)), published=(44_549_160, 2048)),
    "resnet152": Entry("resnet", ("bottleneck_block", (3, 8, 36, 3)), published=(60_192_808, 2048)),
    # channels of the stem, channels that each layer adds, layers per block
    "densenet121": Entry("densenet", (64, 32, (6, 12, 24, 16)), published=(7_978_856, 1024)),
    "densenet161": Entry("densenet", (96, 48, (6, 12, 36, 24)), published=(28_681_000, 2208)),
    "densenet169": Entry("densenet", (64, 32, (6, 12, 32, 32)), published=(14_149_480, 1664)),
    "densenet201": Entry("densenet", (64, 32, (6, 12, 48, 32)), published=(20_013_928, 1920)),
    # side, dropout; width, depth, stochastic depth rate (Tan & Le, 2019, and their code)
    "efficientnetb0": _efficientnet(224, 0.2, (1.0, 1.0, 0.06), (5_288_548, 1280)),
    "efficientnetb1": _efficientnet(240, 0.2, (1.0, 1.1, 0.2), (7_794_184, 1280)),
    "efficientnetb2": _efficientnet(260, 0.3, (1.1, 1.2, 0.2), (9_109_994, 1408)),
    "efficientnetb3": _efficientnet(300, 0.3, (1.2, 1.4, 0.2), (12_233_232, 1536)),
    "efficientnetb4": _efficientnet(380, 0.4, (1.4, 1.8, 0.2), (19_341_616, 1792)),
    "efficientnetb5": _efficientnet(456, 0.4, (1.6, 2.2, 0.2), (30_389_784, 2048)),
    "efficientnetb6": _efficientnet(528, 0.5, (1.8, 2.6, 0.2), (43_040_704, 2304)),
    "efficientnetb7": _efficientnet(600, 0.5, (2.0, 3.1, 0.2), (66_347_960, 2560)),
    # width, depth (Google's efficientnet/lite code, 2020)
    "efficientnetlite0": Entry("efficientnetlite", (1.0, 1.0), dropout=0.2, published=(4_652_008, 1280)),
    "efficientnetlite1": Entry("efficientnetlite", (1.0, 1.1), (240, 240), 0.2, (5_416_680, 1280)),
    "efficientnetlite2": Entry("efficientnetlite", (1.1, 1.2), (260, 260), 0.3, (6_092_072, 1280)),
    # its sizes are options of `build`
    "vit": Entry("vit", image_size=(240, 320), dropout=0.3),
}


def resolve_name(name: str) -> str:
    """Returns the registered name for `name`; "efficientnet_b0" and "ResNet-18" are understood.

    Raises: ModelError: no such model; the message suggests the closest name.
    """
    plain = str(name).strip().lower().replace("_", "").replace("-", "")
    if plain in MODELS:
        return plain
    raise ModelError(f"There is no model {name!r}.{suggest(plain, MODELS)} Models: {', '.join(MODELS)}.")


def family_of_checkpoint(names: Iterable[str]) -> str | None:
    """Returns the family whose PyTorch checkpoints hold arrays of such names, with any prefix; None if none has."""
    names = tuple(names)
    return next((family for family, row in FAMILIES.items() if row.prefix_in(names) is not None), None)


def family_of(name: str) -> Family:
    """Returns the family that `name` belongs to. Raises ModelError if there is no such model."""
    return FAMILIES[MODELS[resolve_name(name)].family]


def choose_dtype(name: str, requested: str = "auto") -> str:
    """Returns the Keras dtype policy to train a model with.

    Args:
      name: a name of MODELS.
      requested: "auto" chooses mixed_bfloat16 on a GPU; on a CPU with bfloat16 instructions and TensorFlow, the
        policy measured as fastest for the family; float32 otherwise. Any other value is returned as it is.
    """
    if requested != "auto":
        return requested
    if runtime.num_gpus():
        return "mixed_bfloat16"
    import keras

    measured = keras.backend.backend() == "tensorflow" and runtime.cpu_has_bfloat16()
    return family_of(name).cpu_dtype if measured else "float32"
