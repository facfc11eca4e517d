"""Masks are known by their names, but only where the picture is too; a class that is called "mask" is no mask."""

import pytest

from kmed.data.readers.masks import find_masks

BESIDE = (
    "_mask",
    "_mask_1",
    "_Mask2",
    "_segmentation",
    "-seg",
    " mask",
    ".mask",
    "_GT",
    "_gt",
    "_annotation",
    "_label",
)
BESIDE += ("_Annotations", "_superpixels", "_ground_truth", "_groundtruth", "-labels", "_contour")


@pytest.mark.parametrize("end", BESIDE)
@pytest.mark.parametrize("picture", ["benign (1).png", "ISIC_0000001.jpg", "x.TIF", "a.b.png"])
def test_masks_beside_their_pictures(end, picture):
    stem = picture.rpartition(".")[0]
    mask = f"benign/{stem}{end}.png"
    assert find_masks([f"benign/{picture}", mask, "benign/other.png"]) == [mask]
    assert find_masks([mask, f"malignant/{picture}"]) == []


NO_MASKS = [
    ["with_mask/1.png", "without_mask/1.png"],
    ["mask/1.png", "mask/2.png", "no mask/1.png", "no mask/2.png"],
    ["mask/mask (1).png", "mask/mask (2).png"],
    ["faces/anna.png", "faces/annamask.png"],
    ["a/mask.png", "a/_mask.png"],
    ["a/seg_1.png", "a/seg_2.png"],
    ["a/1.png", "a/1_left.png"],
    ["masks/1.png", "other/1.png"],
    ["train/mask/1.png", "train/none/1.png", "test/mask/1.png"],
    ["mask/1.png", "2.png"],
]


@pytest.mark.parametrize("pictures", NO_MASKS, ids=lambda pictures: pictures[0])
def test_what_is_no_mask(pictures):
    assert find_masks(pictures) == []


@pytest.mark.parametrize("images", ["images", "Images", "image", "imgs", "photos"])
@pytest.mark.parametrize("masks", ["masks", "Masks", "mask", "segmentations", "ground truth", "labels", "annotations"])
def test_folders_of_masks_beside_folders_of_pictures(images, masks):
    pictures = [f"COVID/{images}/1.png", f"COVID/{masks}/1.png", f"Normal/{images}/x/2.png", f"Normal/{masks}/x/2.png"]
    assert find_masks(pictures) == [pictures[1], pictures[3]]


def test_a_folder_of_masks_below_its_pictures():
    pictures = ["a/1.png", "a/2.jpg", "a/masks/1.png", "a/masks/2_mask.png", "b/1.png"]
    assert find_masks(pictures) == pictures[2:4]
    assert find_masks([*pictures, "a/masks/3.png"]) == []
