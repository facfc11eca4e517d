"""The outer folders are the classes, and patients inside them groups, at any depth; what may be both is refused."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmed.data.readers.levels import read_levels
from kmed.errors import DataError

PICTURES = ("1.png", "2.png")
CLASSES = ("benign", "malignant")
SPLITS = ("train", "test")


def paths(*levels):
    """Returns the paths of all combinations of the names on each level, with two pictures in each folder."""
    return ["/".join(names) for names in itertools.product(*levels, PICTURES)]


def read(pictures, **choices):
    """Returns (shape, classes, splits, groups) of the pictures."""
    levels = read_levels(pictures, "set", **choices)
    return (
        levels.shape,
        sorted({found.label for found in levels.found}),
        sorted({found.split for found in levels.found}),
        sorted({str(found.group) for found in levels.found}),
    )


PATIENTS = [
    [f"patient{i}" for i in range(4)],
    ["pat_07", "pat_08", "pat_19"],
    ["p1", "p2", "p3"],
    ["0001", "0002", "0003", "0017"],
    ["1", "2", "3"],
    ["TCGA-A1-A0SB", "TCGA-A1-A0SD", "TCGA-A2-A0CM"],
    ["1.2.840.113.1", "1.2.840.113.2"],
    ["case 3", "case 4"],
    ["SOB_B_A_14-22549AB", "SOB_B_A_14-22549CD"],
    ["anna", "bert", "carl"],
    ["2019-04-01", "2019-04-02"],
]


@pytest.mark.parametrize("patients", PATIENTS, ids=lambda names: names[0])
@pytest.mark.parametrize("below", [(), (("study1", "study2"),), (("40X", "100X"),), (("left", "right"), ("a", "b"))])
def test_patients_inside_classes(patients, below):
    own = {name: [f"{patient}{'b' * index}" for patient in patients] for index, name in enumerate(CLASSES)}
    pictures = [path for name in CLASSES for path in paths([name], own[name], *below)]
    shape, classes, splits, groups = read(pictures)
    assert shape == "CLASS/GROUP/picture" if not below else "CLASS/GROUP/.../picture"
    assert (classes, splits) == (list(CLASSES), [""])
    assert groups == sorted({*own["benign"], *own["malignant"]})
    pictures = [f"{split}/{path.replace('/', f'/{split[:2]}-', 1)}" for split in SPLITS for path in pictures]
    shape, classes, splits, groups = read(pictures)
    assert shape.startswith("SPLIT/CLASS/GROUP/") and classes == list(CLASSES)
    assert splits == sorted(SPLITS) and len(groups) == 2 * len({*own["benign"], *own["malignant"]})


def test_a_class_with_a_single_patient():
    pictures = [*paths(["benign"], ["benign_pat0"]), *paths(["malignant"], [f"malignant_pat{i}" for i in range(6)])]
    assert read(pictures)[:2] == ("CLASS/GROUP/picture", list(CLASSES))


def test_one_name_in_several_classes_is_one_group():
    assert read(paths(CLASSES, ["p1", "p2", "p3"]))[3] == ["p1", "p2", "p3"]


def test_slides_below_types_and_above_magnifications():
    """As in BreakHis: neither the type nor the magnification is a group, but the slide between them."""
    pictures = [
        f"histology/breast/{name}/SOB/{kind}/SOB_{kind}_{slide}/{magnification}/1.png"
        for name, kinds in (("benign", ("adenosis", "tubular")), ("malignant", ("ductal", "lobular")))
        for kind in kinds
        for slide in range(3)
        for magnification in ("40X", "100X", "200X")
    ]
    shape, classes, _, groups = read(pictures)
    assert (shape, classes) == ("CLASS/.../GROUP/.../picture", list(CLASSES))
    assert len(groups) == 12 and "SOB_adenosis_0" in groups


@pytest.mark.parametrize(
    "inner", [("40X", "100X", "400x"), ("left", "right"), ("axial", "coronal", "sagittal"), ("MLO", "CC")]
)
def test_views_are_neither_classes_nor_groups(inner):
    assert read(paths(CLASSES, inner)) == ("CLASS/.../picture", list(CLASSES), [""], ["None"])
    assert read(paths([f"kind {i}" for i in range(8)], inner))[0] == "CLASS/.../picture"


@pytest.mark.parametrize("name", ["images", "Image", "imgs", "pictures"])
def test_folders_that_are_only_called_images_mean_nothing(name):
    assert read(paths(CLASSES, [name])) == ("CLASS/picture", list(CLASSES), [""], ["None"])
    assert read(paths(SPLITS, [name], CLASSES))[:2] == ("SPLIT/CLASS/picture", list(CLASSES))
    assert read(paths([name], CLASSES))[:2] == ("CLASS/picture", list(CLASSES))
    assert read_levels(paths([name]), "set") is None


OUTER = [
    [str(10_250 + i) for i in range(12)],
    [f"LIDC-IDRI-{i:04d}" for i in range(5)],
    [f"patient{i}" for i in range(2)],
    [f"Subject_{i}" for i in range(3)],
    [f"p{i}" for i in range(6)],
    [str(i) for i in range(11)],
    [f"A{i}" for i in range(10)],
]


@pytest.mark.parametrize("patients", OUTER, ids=lambda names: names[0])
@pytest.mark.parametrize("classes", [("0", "1"), ("benign", "malignant"), ("a", "b", "c")], ids="-".join)
def test_classes_inside_patients(patients, classes):
    if len(patients) < len(classes) and not patients[0].startswith("patient"):
        pytest.skip("not unmistakable")
    pictures = paths(patients, classes)
    assert read(pictures) == ("GROUP/CLASS/picture", list(classes), [""], sorted(patients))
    if len(patients) > 2:  # then one may lack a class
        assert read(pictures[:-2])[:2] == ("GROUP/CLASS/picture", list(classes))
    pictures = [f"{split}/{path}" for split in SPLITS for path in pictures]
    assert read(pictures)[0] == "SPLIT/GROUP/CLASS/picture"


@pytest.mark.parametrize(
    ("outer", "inner"),
    [("xy", "ab"), (["anna", "bert", "carl"], "01"), (["3", "4", "5"], "01"), (["Fold1", "Fold2"], CLASSES)],
)
def test_what_may_be_read_in_two_ways_is_refused_until_the_classes_are_named(outer, inner):
    pictures = paths(outer, inner)
    first, last = sorted(outer)[0], sorted(inner)[-1]
    message = (
        rf"Several folders in set hold class folders: {first}, .* each hold .*{last}\. .*class_names=\[.*split_folders"
    )
    with pytest.raises(DataError, match=message):
        read_levels(pictures, "set")
    assert read(pictures, class_names=list(inner))[:2] == ("GROUP/CLASS/picture", sorted(inner))
    shape, classes, _, _ = read(pictures, class_names=list(outer))
    assert shape.startswith("CLASS/") and classes == sorted(outer)
    splits = {name: ("train", "test")[index % 2] for index, name in enumerate(outer)}
    assert read(pictures, split_folders=splits)[:3] == ("SPLIT/CLASS/picture", sorted(inner), ["test", "train"])


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (paths(["benign"]), r"set holds one class folder with pictures \(benign\); at least two classes are needed"),
        (paths(["data"], ["benign"]), r"one class folder with pictures \(benign\)"),
        (
            paths(["benign"], [f"patient{i}" for i in range(6)]),
            "set/benign look like patients .*'benign' may be the only",
        ),
        (
            paths(["benign"], [str(1000 + i) for i in range(6)]),
            "set/benign look like patients .*'benign' may be the only",
        ),
        (paths([f"patient{i}" for i in range(6)]), "The folders in set look like patients .* or a CSV of labels"),
        (paths(["patient1", "patient2"], ["session1", "session2"]), "look like patients"),
        (paths(["control", "test"], ["s1", "s2"]), "only 'test' is the name of a split.*class_names.*split_folders"),
        (paths("xy", SPLITS, "ab"), "Several folders in set hold class folders: x, y. Name the one to use"),
        (
            ["figures/1.png", *paths(["set"], "ab")],
            "not clear which folders in set are the classes: figures, set, or .*a, b",
        ),
    ],
)
def test_folders_that_are_refused(pictures, message):
    with pytest.raises(DataError, match=message):
        read_levels(pictures, "set")


def test_patients_may_be_the_classes_if_they_are_named():
    names = [f"patient{i}" for i in range(6)]
    assert read(paths(names), class_names=names)[:2] == ("CLASS/picture", names)


@pytest.mark.parametrize(
    "train", ["train", "TRAIN", "Training", "train_set", "Training Set", "trainset", "train-images"]
)
@pytest.mark.parametrize("held", ["val", "VALID", "Validation", "validation_set", "dev", "ValData"])
def test_spellings_of_splits(train, held):
    assert read(paths([train, held], CLASSES))[:3] == ("SPLIT/CLASS/picture", list(CLASSES), ["train", "val"])


def test_splits_inside_classes_and_splits_in_splits():
    assert read(paths(CLASSES, SPLITS)) == ("CLASS/SPLIT/picture", list(CLASSES), sorted(SPLITS), ["None"])
    shape = read(paths(CLASSES, SPLITS, ["p1", "p2"]))[0]
    assert (
        shape
        == "CLASS/SPLIT/GROUP/picture"
        == read(paths(CLASSES, SPLITS, "xy"), class_names=CLASSES)[0].replace("...", "GROUP")
    )
    twice = [*paths(["train"], ["train"], CLASSES), *paths(["test"], ["test"], CLASSES)]
    assert read(twice)[:3] == ("SPLIT/CLASS/picture", list(CLASSES), sorted(SPLITS))


def test_what_is_left_out_is_kept_apart():
    levels = read_levels([*paths(["in"], SPLITS, CLASSES), *paths(["in"], ["old", "test"]), "x.png"], "set")
    assert levels.root == "in" and levels.other_folders == {"old": 2}
    assert sorted(levels.without_class) == ["in/test/1.png", "in/test/2.png", "x.png"]
    assert read_levels(["1.png", "2.png"], "set") is None and read_levels([], "set") is None


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(st.lists(st.lists(NAMES, min_size=1, max_size=5), max_size=12))
@settings(max_examples=200, deadline=None)
def test_any_folders_are_read_or_refused_in_one_line(found):
    pictures = sorted({"/".join(parts) for parts in found})
    try:
        levels = read_levels(pictures, "set")
    except DataError as error:
        assert "set" in str(error)
        return
    if levels is not None:
        kept = [picture.path for picture in levels.found]
        assert len(kept) + len(levels.without_class) + sum(levels.other_folders.values()) == len(pictures)
        assert set(kept) <= set(pictures) and all(picture.label in picture.path.split("/") for picture in levels.found)


@given(
    st.lists(st.sampled_from(["naevus", "melanoma", "bkl", "grade 1", "grade 2", "0", "1"]), min_size=2, unique=True),
    st.integers(1, 6),
    st.integers(0, 2),
    st.booleans(),
    st.randoms(use_true_random=False),
)
@settings(max_examples=100, deadline=None)
def test_classes_are_outside_whatever_lies_inside(classes, num_patients, depth, with_splits, random):
    """Patients have their own names; those of one class number as many as chance has it."""
    deeper = [random.choice([("study1", "study2"), ("40X",), ("images",), ("left", "right")]) for _ in range(depth)]
    pictures = []
    for name in classes:
        patients = [f"{name}-pat{number}" for number in range(random.randint(1, num_patients))]
        pictures += paths(*([SPLITS] if with_splits else []), [name], patients, *deeper)
    shape, found, _, groups = read(pictures)
    assert shape.startswith("SPLIT/CLASS/GROUP" if with_splits else "CLASS/GROUP")
    assert found == sorted(classes) and all("-pat" in group for group in groups)
