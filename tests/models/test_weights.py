"""Loading weights into a small transformer, which is fast."""

import json
import logging

import huggingface_hub
import keras
import ml_dtypes
import numpy as np
import pytest
import torch_writer
from small_vit import SIZE, small, state, written

from kmed.errors import ModelError, WeightsError
from kmed.models.build import build_model
from kmed.models.vit import resize_positions
from kmed.models.weight_files import normalization_of
from kmed.models.weights import load_weights


def copies(model):
    return [np.array(weight) for weight in model.weights]


def same(one, two):
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_each_tensor_goes_to_its_variable(tmp_path):
    arrays, model = state(), small()
    assert load_weights(model, written(tmp_path, arrays)) == []
    backbone = model.get_layer("backbone")
    np.testing.assert_array_equal(
        backbone.get_layer("patch_embed").kernel, arrays["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(backbone.get_layer("block0_attn").qkv.kernel, arrays["blocks.0.attn.qkv.weight"].T)
    np.testing.assert_array_equal(backbone.get_layer("tokens").pos_embed, arrays["pos_embed"])
    np.testing.assert_array_equal(model.get_layer("head").kernel, arrays["head.weight"].T)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_sixteen_bits_are_read(dtype, tmp_path):
    arrays, model = {name: array.astype(dtype) for name, array in state().items()}, small()
    assert load_weights(model, written(tmp_path, arrays)) == []
    np.testing.assert_array_equal(model.get_layer("head").bias, arrays["head.bias"].astype("float32"))


def test_a_folder_is_read_and_batch_counters_are_ignored(tmp_path):
    written(tmp_path, {**state(), "bn1.num_batches_tracked": np.array(3)})
    assert load_weights(small(), tmp_path) == []


@pytest.mark.parametrize("num_classes", [1, 1000])
def test_a_head_for_other_classes_is_initialised_anew(num_classes, tmp_path):
    model, fresh = small(), small()
    model.get_layer("head").bias.assign([1.0, 2.0, 3.0])
    notes = load_weights(model, written(tmp_path, state(num_classes=num_classes)))
    assert notes == [f"The weights' head is for {num_classes} classes: the head for 3 is initialised anew."]
    assert np.asarray(model.get_layer("head").bias).tolist() == [0, 0, 0]
    np.testing.assert_array_equal(model.get_layer("head").kernel, fresh.get_layer("head").kernel)
    assert not np.array_equal(model.get_layer("backbone").get_layer("norm").gamma, np.ones(8))


def test_weights_without_a_head_are_accepted(tmp_path):
    arrays = {name: array for name, array in state().items() if not name.startswith("head")}
    assert load_weights(small(), written(tmp_path, arrays)) == [
        "The weights have no head: the head for 3 classes is initialised anew."
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.0.norm2.bias": None}, "vit needs 'blocks.0.norm2.bias'"),
        ({"head.bias": None}, "vit needs 'head.bias'"),
        ({"blocks.1.norm1.weight": np.ones(8, "float32")}, "'blocks.1.norm1.weight', for which vit has no place"),
        ({"norm.weight": np.ones(9, "float32")}, r"'norm.weight' has shape \(9,\), but vit needs \(8,\)"),
        ({"head.weight": np.ones((3, 9), "float32")}, "'head.weight' has shape"),
        ({"blocks.0.attn.qkv.weight": np.ones((8, 24), "float32")}, "'blocks.0.attn.qkv.weight' has shape"),
        ({"cls_token": np.full((1, 1, 8), np.nan, "float32")}, "'cls_token' holds values that are not finite"),
        ({"pos_embed": np.ones((1, 7, 9), "float32")}, "'pos_embed' has shape"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_changes(change, message, tmp_path):
    arrays = {name: array for name, array in {**state(), **change}.items() if array is not None}
    model = small()
    before = copies(model)
    with pytest.raises(WeightsError, match=message):
        load_weights(model, written(tmp_path, arrays))
    assert same(copies(model), before)


def test_another_architecture_is_named(tmp_path):
    path = written(tmp_path, state() | {"blocks.7.norm1.bias": np.ones(8, "float32")}, {"architecture": "vit_deep"})
    with pytest.raises(WeightsError, match="says that it holds vit_deep"):
        load_weights(small(), path)


def test_normalisation_travels_with_the_weights(tmp_path):
    facts = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    written(tmp_path, state(), {"architecture": "vit", "pretrained_cfg": facts})
    assert normalization_of(tmp_path) == ((0.5,) * 3, (0.25,) * 3)
    assert small(weights=tmp_path).get_layer("normalize").mean == (0.5,) * 3
    assert (
        small(weights=tmp_path, normalization=(facts["mean"], facts["std"])).get_layer("normalize").std == (0.25,) * 3
    )
    with pytest.raises(ModelError, match="Leave it out"):
        small(weights=tmp_path, normalization="imagenet")
    [note] = load_weights(small(), tmp_path)
    assert "expect worse features" in note


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mean": [1], "std": [1]}, "three numbers each"),
        ({"mean": "grey", "std": 3}, "three numbers each"),
        ([], "JSON object"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(config, message, tmp_path):
    written(tmp_path, state(), config)
    with pytest.raises(WeightsError, match=message):
        normalization_of(tmp_path)


def test_an_earlier_run_gives_weights_and_normalisation(tmp_path):
    model = small(normalization="unit")
    model.compile("sgd", "categorical_crossentropy")
    model.save(tmp_path / "model.keras")
    again = small(weights=tmp_path)  # a run folder
    assert same(copies(again), copies(model))
    assert again.get_layer("normalize").std == (1, 1, 1)
    two = small(2, weights=tmp_path / "model.keras")
    assert same(copies(two.get_layer("backbone")), copies(model.get_layer("backbone")))
    with pytest.raises(ModelError, match="Leave it out"):
        small(weights=tmp_path, normalization="imagenet")


def run_of(folder, names):
    """Writes a small model, and a classes.json with `names`, as a run does; returns the model."""
    model = small(len(names))
    head = model.get_layer("head")
    head.kernel.assign(head.kernel + 1)  # as if it had been trained: a new head has the same seed
    model.save(folder / "model.keras")
    (folder / "classes.json").write_text(json.dumps({"class_names": names}), encoding="utf-8")
    return model


@pytest.mark.parametrize(
    ("theirs", "ours", "order", "note"),
    [
        (["cat", "dog"], ["cat", "dog"], [0, 1], None),
        (["cat", "dog"], ["dog", "cat"], [1, 0], "same classes in another order (cat, dog): it is reordered"),
        (["a", "b", "c"], ["c", "a", "b"], [2, 0, 1], "it is reordered"),
        (["a"], ["a"], [0], None),
        (["cat", "dog"], ["a_dog", "z_cat"], None, "(cat, dog): the head for a_dog, z_cat is initialised anew"),
        (["cat", "dog"], ["cat", "cow"], None, "for other classes"),
        (["cat", "dog"], ["Cat", "dog"], None, "for other classes"),
        (["a"], ["b"], None, "for other classes"),
        (["a", "b", "c"], ["a", "b"], None, "is for 3 classes"),
        (["a", "b"], ["a", "b", "c"], None, "is for 2 classes"),
        (["$x$", "\u7ec6"], ["\u7ec6", "$x$"], [1, 0], "it is reordered"),
    ],
)
def test_the_classes_of_a_run_decide_about_its_head(theirs, ours, order, note, tmp_path):
    model, new = run_of(tmp_path, theirs), small(len(ours))
    notes = load_weights(new, tmp_path, ours)
    assert len(notes) == (note is not None) and (note is None or note in notes[0])
    assert same(copies(new.get_layer("backbone")), copies(model.get_layer("backbone")))
    old_head, head = copies(model.get_layer("head")), copies(new.get_layer("head"))
    if order is not None:
        assert same(head, [values[..., order] for values in old_head])
    else:
        assert not np.isin(head[0], old_head[0]).any() and not head[1].any()


def test_weights_that_name_no_classes_are_said_to(tmp_path):
    model = run_of(tmp_path, ["cat", "dog"])
    (tmp_path / "classes.json").unlink()
    new = small(2)
    (note,) = load_weights(new, tmp_path / "model.keras", ["a", "b"])
    assert note == "The weights do not name their classes: their head is taken to be for a, b."
    assert same(copies(new), copies(model))
    assert load_weights(new, tmp_path / "model.keras") == []  # without names there is nothing to compare


@pytest.mark.parametrize("content", ["{", "[]", '{"class_names": "ab"}', '{"class_names": [1, 2]}', "{}"])
def test_damaged_class_names_of_a_run_are_refused(content, tmp_path):
    run_of(tmp_path, ["cat", "dog"])
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(WeightsError, match="classes.json"):
        load_weights(small(2), tmp_path, ["cat", "dog"])


def test_the_labels_of_timms_config_are_compared(tmp_path):
    arrays = state(num_classes=2)
    path = written(tmp_path, arrays, {"label_names": ["cat", "dog"]})
    turned, other = small(2), small(2)
    assert "it is reordered" in load_weights(turned, path, ["dog", "cat"])[0]
    np.testing.assert_array_equal(turned.get_layer("head").bias, arrays["head.bias"][::-1])
    assert "for other classes" in load_weights(other, path, ["dog", "cow"])[0]


def test_class_names_must_fit_the_number_of_classes():
    with pytest.raises(ModelError, match="class_names must be 3 names. Received: a, b."):
        small(3, class_names=["a", "b"])


def test_an_earlier_run_of_another_model_is_refused(tmp_path):
    build_model("vit", 3, SIZE, width=8, depth=2, num_heads=2).save(tmp_path / "model.keras")
    with pytest.raises(WeightsError, match="'block1_.*for which .* has no place"):
        load_weights(small(), tmp_path)


def test_building_logs_the_notes(tmp_path, caplog):
    path = written(tmp_path, state(num_classes=9))
    with caplog.at_level(logging.INFO, logger="kmed"):
        logging.getLogger("kmed").propagate = True
        small(weights=path)
    assert "head is for 9 classes" in caplog.text


@pytest.mark.parametrize(
    ("old_grid", "config"),
    [
        ((4, 6), None),
        ((4, 6), {"pretrained_cfg": {"input_size": [3, 32, 48]}}),
        ((5, 5), None),
        ((3, 4), {"input_size": [3, 24, 32]}),
    ],
)
def test_positions_are_resized_from_another_image_size(old_grid, config, tmp_path):
    arrays = state(num_patches=old_grid[0] * old_grid[1])
    model = small()
    notes = load_weights(model, written(tmp_path, arrays, config))
    assert notes == [f"Positions were resized from {old_grid[0]}x{old_grid[1]} to 2x3 patches."]
    expected = resize_positions(arrays["pos_embed"], old_grid, (2, 3))
    np.testing.assert_array_equal(model.get_layer("backbone").get_layer("tokens").pos_embed, expected)


def test_positions_of_an_earlier_run_are_resized(tmp_path):
    small(size=(24, 16)).save(tmp_path / "model.keras")  # 3x2: as many patches, another shape
    assert load_weights(small(), tmp_path) == ["Positions were resized from 3x2 to 2x3 patches."]


def test_positions_of_unknown_shape_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="12 positions, but their number of rows is unknown"):
        load_weights(small(), written(tmp_path, state(num_patches=12)))


@pytest.mark.parametrize(("name", "content"), [("model.safetensors", b"no tensors"), ("model.keras", b"no archive")])
def test_a_damaged_file_is_named(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=f"{name} (is not a readable|cannot be loaded)"):
        load_weights(small(), tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.safetensors", "no weights at"),
        ("model.pth", "neither of the formats"),
        ("model.h5", "read from .safetensors, .keras and PyTorch"),
        ("", "holds neither"),
    ],
)
def test_what_is_not_a_checkpoint_is_named(name, message, tmp_path):
    for file in ("model.pth", "model.h5"):
        (tmp_path / file).write_bytes(b"")
    with pytest.raises(WeightsError, match=message):
        load_weights(small(), tmp_path / name)


def test_a_foreign_model_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)], name="mine")
    with pytest.raises(WeightsError, match="'mine'"):
        load_weights(model, written(tmp_path, state()))


def test_models_without_imagenet_weights_name_those_that_have_them():
    with pytest.raises(WeightsError, match="no ImageNet weights for vit. Models that have them: resnet18"):
        small(weights="imagenet")
    with pytest.raises(WeightsError, match="belong to a model. Received: name=None"):
        normalization_of("imagenet")


def test_without_a_network_the_message_says_what_to_do(monkeypatch):
    def offline(repository, file):
        raise OSError(f"no route to {repository}")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(WeightsError, match="hf://timm/resnet18.a1_in1k could not be fetched .*give a folder"):
        build_model("resnet18", 3, (32, 32), weights="imagenet")


def test_a_hub_repository_is_read_like_a_folder(monkeypatch, tmp_path):
    written(tmp_path, state(num_classes=1000), {"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}})
    requested = []

    def download(repository, file):
        requested.append((repository, file))
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    model = small(weights="hf://someone/small-vit")
    assert set(requested) == {("someone/small-vit", "config.json"), ("someone/small-vit", "model.safetensors")}
    assert model.get_layer("normalize").mean == (0.5,) * 3
    expected = state(num_classes=1000)["cls_token"]
    np.testing.assert_array_equal(model.get_layer("backbone").get_layer("tokens").cls_token, expected)


# ----- PyTorch files -----


def pth(folder, arrays, name="weights.pth", **kwargs):
    """Writes a state dict as torch.save does, in the zip format; returns the path."""
    value = torch_writer.state_dict(arrays, old=False, transposed=True)
    (folder / name).write_bytes(torch_writer.zip_file(value, torch_writer.blocks(arrays, transposed=True), **kwargs))
    return folder / name


UNKNOWN_SCALING = "The weights do not say how their pixels were scaled: mean"


def test_a_pytorch_file_is_loaded_and_says_what_it_leaves_open(tmp_path):
    arrays, model = {**state(), "bn1.num_batches_tracked": np.array(3)}, small()
    [note] = load_weights(model, pth(tmp_path, arrays))
    assert note.startswith(UNKNOWN_SCALING) and note.endswith("are taken (model.normalization).")
    backbone = model.get_layer("backbone")
    np.testing.assert_array_equal(
        backbone.get_layer("patch_embed").kernel, arrays["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(model.get_layer("head").kernel, arrays["head.weight"].T)


def test_the_config_beside_a_pytorch_file_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"mean": [0.5] * 3, "std": [0.25] * 3}))
    path = pth(tmp_path, state(), "pytorch_model.bin")
    assert normalization_of(path) == ((0.5,) * 3, (0.25,) * 3)
    assert small(weights=path).get_layer("normalize").std == (0.25,) * 3


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "_orig_mod.", "model.module."], ids=["DataParallel", "Lightning", "compile", "two"]
)
def test_the_prefix_of_a_wrapper_is_removed_and_said(prefix, tmp_path):
    arrays = state()
    wrapped = {f"{prefix}{key}": array for key, array in arrays.items()}
    said = f"The names of the weights begin with {prefix!r}, which was removed."
    for path in (written(tmp_path, wrapped), pth(tmp_path, wrapped)):
        model = small()
        assert load_weights(model, path)[0] == said
        np.testing.assert_array_equal(model.get_layer("head").bias, arrays["head.bias"])


def test_the_weights_of_a_loss_are_left_out_and_named(tmp_path):
    """Lightning stores the class weights of a loss beside the network."""
    arrays, model = state(), small()
    wrapped = {f"model.{key}": array for key, array in arrays.items()} | {"criterion.weight": np.ones(3, "float32")}
    notes = load_weights(model, pth(tmp_path, wrapped))
    assert notes[1] == "Weights with other names were left out: criterion.weight."
    np.testing.assert_array_equal(model.get_layer("head").bias, arrays["head.bias"])


def test_names_that_no_prefix_explains_are_named_as_they_are(tmp_path):
    path = pth(tmp_path, {f"net.{key}.inner": array for key, array in state().items()})
    with pytest.raises(WeightsError, match="vit needs 'patch_embed.proj.weight', which the weights do not have"):
        load_weights(small(), path)


def test_a_whole_pickled_model_is_refused_with_the_remedy(tmp_path):
    value = torch_writer.name("my_project.models", "Net") + b")R"
    (tmp_path / "model.pt").write_bytes(torch_writer.zip_file(value, {}))
    with pytest.raises(WeightsError, match=r"refers to 'my_project.models.Net'.*torch.save\(model.state_dict\("):
        load_weights(small(), tmp_path / "model.pt")


ONE = np.ones((1, 1, 1, 1), "float32")


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("resnet", ["conv1.weight", "layer1.0.conv1.weight"]),
        ("densenet", ["features.conv0.weight", "features.denseblock1.denselayer1.conv.1.weight"]),
        ("efficientnet", ["conv_stem.weight", "blocks.0.0.conv_dw.weight", "blocks.0.0.se.conv_reduce.weight"]),
        ("efficientnet", ["features.1.0.block.1.fc1.weight"]),
        ("efficientnetlite", ["conv_stem.weight", "blocks.0.0.conv_dw.weight"]),
        ("efficientnetlite", ["_conv_stem.weight", "_blocks.0._depthwise_conv.weight"]),
        ("resnet", ["module.layer1.0.conv1.weight"]),
    ],
)
def test_weights_of_another_family_name_both(family, names, tmp_path):
    path = pth(tmp_path, dict.fromkeys(names, ONE))
    model = small()
    before = copies(model)
    with pytest.raises(WeightsError) as caught:
        load_weights(model, path)
    assert f"weights.pth are those of the family {family} and do not fit vit. Give weights of the family vit" in str(
        caught.value
    )
    assert same(copies(model), before)


def test_a_run_of_another_family_names_both(tmp_path):
    small().save(tmp_path / "model.keras")
    with pytest.raises(WeightsError, match="those of the family vit and do not fit resnet18"):
        load_weights(build_model("resnet18", 3, (32, 32)), tmp_path)


def test_the_names_of_torchvisions_files_are_known():
    from kmed.models import densenet, efficientnet

    old = "features.denseblock1.denselayer12.norm.1.weight"
    assert densenet.rename({old: 1, "features.transition1.norm.weight": 2}) == {
        "features.denseblock1.denselayer12.norm1.weight": 1, "features.transition1.norm.weight": 2,
    }  # fmt: skip
    theirs = [
        "features.0.0.weight", "features.0.1.bias", "features.1.0.block.0.0.weight", "features.1.0.block.0.1.weight",
        "features.1.0.block.1.fc1.bias", "features.1.0.block.2.0.weight", "features.1.0.block.2.1.bias",
        "features.2.1.block.0.0.weight", "features.2.1.block.1.0.weight", "features.2.1.block.1.1.running_var",
        "features.2.1.block.2.fc2.weight", "features.2.1.block.3.0.weight", "features.2.1.block.3.1.weight",
        "features.8.0.weight", "features.8.1.weight", "classifier.1.bias",
    ]  # fmt: skip
    assert list(efficientnet.rename(dict.fromkeys(theirs))) == [
        "conv_stem.weight", "bn1.bias", "blocks.0.0.conv_dw.weight", "blocks.0.0.bn1.weight",
        "blocks.0.0.se.conv_reduce.bias", "blocks.0.0.conv_pw.weight", "blocks.0.0.bn2.bias",
        "blocks.1.1.conv_pw.weight", "blocks.1.1.conv_dw.weight", "blocks.1.1.bn2.running_var",
        "blocks.1.1.se.conv_expand.weight", "blocks.1.1.conv_pwl.weight", "blocks.1.1.bn3.weight",
        "conv_head.weight", "bn2.weight", "classifier.bias",
    ]  # fmt: skip
    with pytest.raises(WeightsError, match="b5 to b7 have another epsilon"):
        efficientnet.rename(dict.fromkeys([*theirs, "features.7.2.block.0.0.weight"]))
