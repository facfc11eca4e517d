"""Public data sets in class folders or as npz, each drawn with a handful of pictures in its published layout."""

import numpy as np
from click.testing import CliRunner
from PIL import Image

from kmed.cli.main import main
from kmed.config import load_config
from kmed.data.prepare import read_split_table


def draw(root, *paths):
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (12, 12), dtype=np.uint8)
        Image.fromarray(pixels).save(root / path)


def shown(path, out, *settings):
    """Returns (table, what `kmed data show` prints)."""
    choices = [word for setting in settings for word in ("--set", setting)]
    result = CliRunner().invoke(
        main, ["data", "show", str(path), "--out", str(out.parent / f"{out.name}_shown"), *choices]
    )
    assert result.exit_code == 0, result.output
    return read_split_table(load_config(overrides=[*settings, ("data.path", str(path))])), result.output


def test_covid_radiography(tmp_path):
    root = tmp_path / "COVID-19_Radiography_Dataset"
    classes = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
    draw(root, *(f"{name}/{kind}/{name}-{i}.png" for name in classes for kind in ("images", "masks") for i in range(6)))
    for name in classes:
        (root / f"{name}.metadata.xlsx").write_bytes(b"PK")
    (root / "README.md.txt").write_text("about")
    table, text = shown(tmp_path, tmp_path)
    assert table.class_names == classes and len(table) == 24 and not table.grouped
    assert all("/images/" in path for path in table.rows["path"])
    assert f"Layout: CLASS/picture in {root}." in text
    assert "Masks of other pictures are left out, as their names say (24): COVID-19_Radiography_Dataset/COVID" in text
    assert "5 files of other types are ignored (.xlsx, .txt)." in text


def test_busi(tmp_path):
    root = tmp_path / "Dataset_BUSI_with_GT"
    classes = ("benign", "malignant", "normal")
    draw(root, *(f"{name}/{name} ({i}){end}.png" for name in classes for i in range(1, 7) for end in ("", "_mask")))
    draw(root, "benign/benign (4)_mask_1.png", "benign/benign (5)_mask_2.png")
    table, text = shown(root, tmp_path)
    assert table.class_names == classes and len(table) == 18
    assert not any("mask" in path for path in table.rows["path"])
    assert "Masks of other pictures are left out, as their names say (20): benign/benign (1)_mask.png, " in text


def test_breakhis(tmp_path):
    root = tmp_path / "BreaKHis_v1" / "histology_slides" / "breast"
    kinds = {"benign": {"adenosis": "B_A", "tubular": "B_TA"}, "malignant": {"ductal": "M_DC", "lobular": "M_LC"}}
    for name, inside in kinds.items():
        for kind, code in inside.items():
            slides = [f"SOB_{code}_14-{number}" for number in (22549, 22550, 22551)]
            paths = [f"{slide}/{zoom}X/{slide}-{zoom}-1.png" for slide in slides for zoom in (40, 100)]
            draw(root / name / "SOB" / kind, *paths)
    table, text = shown(tmp_path / "BreaKHis_v1", tmp_path)
    assert table.class_names == ("benign", "malignant") and table.grouped and table.rows["group"].nunique() == 12
    assert f"Layout: CLASS/.../GROUP/.../picture in {root}." in text
    assert "Groups: 12 folders, such as SOB_B_A_14-22549;" in text


def test_breast_histopathology_images(tmp_path):
    """The IDC patches: a folder for each patient, and in it one for each class."""
    root = tmp_path / "IDC_regular_ps50_idx5"
    draw(root, *(f"{8863 + i}/{label}/{8863 + i}_idx5_x1_y1_class{label}.png" for i in range(20) for label in "01"))
    table, text = shown(tmp_path, tmp_path)
    assert table.class_names == ("0", "1") and table.rows["group"].nunique() == 20
    assert f"Layout: GROUP/CLASS/picture in {root}." in text


def test_patch_camelyon_as_folders(tmp_path):
    paths = [f"{split}/{label}/{i}.png" for split in ("train", "valid", "test") for label in "01" for i in range(4)]
    draw(tmp_path, *paths)
    table, text = shown(tmp_path, tmp_path)
    assert table.class_names == ("0", "1") and table.counts()["images"].to_dict() == {"train": 8, "val": 8, "test": 8}
    assert f"Layout: SPLIT/CLASS/picture in {tmp_path}." in text


def test_patch_camelyon_as_npz(tmp_path):
    """It is published as HDF5; here its arrays, labels of shape (N, 1, 1, 1) among them, have MedMNIST's keys."""
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.random.default_rng(0).integers(0, 256, (8, 12, 12, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(8).reshape(8, 1, 1, 1) % 2
    np.savez(tmp_path / "pcam.npz", **arrays)
    table, _ = shown(tmp_path / "pcam.npz", tmp_path)
    assert table.class_names == ("0", "1") and table.counts()["images"].to_dict() == {"train": 8, "val": 8, "test": 8}


def test_chest_x_ray_pneumonia(tmp_path):
    """Kaggle's archive holds the set twice, once in a hidden folder of macOS."""
    folders = [f"{split}/{name}" for split in ("train", "val", "test") for name in ("NORMAL", "PNEUMONIA")]
    paths = [f"{folder}/{number}.jpeg" for folder in folders for number in range(3)]
    draw(tmp_path / "chest_xray", *paths)
    for path in paths[:3]:
        (tmp_path / "__MACOSX" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "__MACOSX" / path).write_bytes(b"shadow")
    table, text = shown(tmp_path, tmp_path)
    assert len(table) == 18 and table.class_names == ("NORMAL", "PNEUMONIA")
    assert "Hidden files and folders are left out (1): __MACOSX/." in text


def test_how_the_folders_were_read_is_said_even_if_they_cannot_be_split(tmp_path):
    draw(tmp_path, *(f"{name}/patient1/{i}.png" for name in "ab" for i in range(3)), "a/patient2/1.png")
    result = CliRunner().invoke(main, ["data", "show", str(tmp_path)])
    assert result.exit_code == 1 and result.output.splitlines()[-1].startswith("Error: ")
    assert f"Layout: CLASS/GROUP/picture in {tmp_path}." in result.output
