"""Which values become black and white in pictures of more than 8 bits: found in training, stored, used afterwards."""

import io
import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

import kmed
from kmed.cli.main import main
from kmed.config import FULL, load_config, parse_range, range_text
from kmed.data.decoding import decoded
from kmed.data.images import Resizing, read_image, resize_array
from kmed.data.pixel_range import find_range, to_eight_bits, with_range
from kmed.data.prepare import pack_data
from kmed.data.readers.load import load_table
from kmed.data.table import Table
from kmed.errors import ConfigError, DataError
from kmed.training.fit import with_range as config_with_range


@pytest.mark.parametrize(
    ("peak", "high"),
    [(0, 255), (255, 255), (256, 1023), (1000, 1023), (1023, 1023), (1024, 4095), (4071, 4095), (4095, 4095),
     (4096, 16383), (16383, 16383), (16384, 65535), (40000, 65535), (65535, 65535)],
)  # fmt: skip
def test_the_smallest_usual_depth_that_holds_all_values(peak, high):
    assert find_range(peak) == (0, high)


@pytest.mark.parametrize("text", ["full", "0-4095", "100-200", "-1024-3071", "-200--100", " 0 - 4095 ", "0-65536"])
def test_legal_settings(text):
    setting = load_config(overrides=[("data.range", text)]).data.range
    low, high = parse_range(setting)
    assert low < high and parse_range(range_text((low, high))) == (low, high)
    assert load_config(overrides=[f"data.range={text}"]).data.range == setting


@pytest.mark.parametrize("value", ["half", "4095", 4095, "5-5", "10-2", "1-2-3", "a-b", "0-4095.5", "", None, [0]])
def test_other_settings_are_one_line(value):
    with pytest.raises(ConfigError, match=r"data\.range") as caught:
        load_config(overrides=[("data.range", value)])
    assert "\n" not in str(caught.value)


def test_a_pair_is_legal_in_python():
    assert load_config(overrides=[("data.range", (0, 4095))]).data.range == "0-4095"


@pytest.mark.parametrize("limits", [FULL, (0, 4095), (0, 255), (1000, 1001), (100, 60000), (-1024, 3071)])
@pytest.mark.parametrize("dtype", [np.uint16, ">u2", np.int32])
def test_values_are_scaled_as_exact_arithmetic_scales_them(limits, dtype):
    values = np.random.default_rng(0).integers(0, 65536, (300, 7))
    values[0, :5] = limits[0] % 65536, limits[1], 0, 65535, 4095
    low, high = limits
    exact = np.floor((np.clip(values, low, high) - low) * 255 / (high - low) + 0.5)
    np.testing.assert_array_equal(to_eight_bits(values.astype(dtype), limits), exact)


def test_values_below_0_need_a_range_that_begins_below_0():
    values = np.array([[-2000, -1024, 0, 3071, 9000]], np.int32)
    for limits in (FULL, (0, 4095)):
        with pytest.raises(DataError, match=r"CT holds pixels from -2000 to 9000.*data\.range=-1024-3071"):
            to_eight_bits(values, limits, "CT")
    assert to_eight_bits(values, (-1024, 3071)).tolist() == [[0, 0, 64, 255, 255]]


def encoded(pixels, kind="PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_files_and_arrays_of_16_bits_agree(kind):
    values = np.random.default_rng(0).integers(0, 4096, (9, 7)).astype(np.uint16)
    twelve = Resizing((5, 5), range=(0, 4095))
    np.testing.assert_array_equal(read_image(encoded(values, kind), twelve), resize_array(values, twelve))
    assert len(np.unique(read_image(encoded(values, kind), Resizing(range=(0, 4095))))) > 50
    assert len(np.unique(read_image(encoded(values, kind)))) <= 17


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP"])
def test_pictures_of_8_bits_are_the_same_whatever_the_range(kind):
    content = encoded(np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8), kind)
    np.testing.assert_array_equal(read_image(content), read_image(content, Resizing(range=(0, 100))))


def test_colours_of_16_bits():
    cv2 = pytest.importorskip("cv2")
    values = np.random.default_rng(0).integers(0, 4096, (9, 7, 4)).astype(np.uint16)  # blue, green, red, alpha
    values[..., 3] = 65535
    for channels, suffix in ((3, ".png"), (4, ".png"), (3, ".tiff")):
        content = cv2.imencode(suffix, values[..., :channels])[1].tobytes()
        with decoded(content) as picture:
            assert picture.peak == values[..., :3].max()
        plain = Image.open(io.BytesIO(content)).convert("RGB")
        np.testing.assert_array_equal(read_image(content), np.asarray(plain))  # the upper byte, as Pillow has it
        exact = np.floor(values[..., 2::-1].astype(float) * 255 / 4095 + 0.5)
        np.testing.assert_array_equal(read_image(content, Resizing(range=(0, 4095))), exact)


def table_of(splits) -> Table:
    names = [str(row) for row in range(len(splits))]
    rows = pd.DataFrame({"path": names, "group": names, "cluster": names, "split": splits})
    return Table(rows, np.eye(2, dtype=np.float32)[np.arange(len(splits)) % 2], ("a", "b"), "multiclass", "made")


def test_training_pictures_decide_and_what_exceeds_them_is_named():
    table = with_range(table_of(["train", "train", "val", "test"]), {"0": 4000, "2": 5000, "3": 100})
    assert table.range == (0, 4095)
    assert "3 pictures have more than 8 bits" in table.notes[-1] and "4,000" in table.notes[-1]
    assert table.notes[-1].endswith("Values above that become white, in 1 of them.")
    assert with_range(table_of(["", ""]), {"0": 900, "1": 9000}).range == (0, 16383)
    assert with_range(table_of(["train"]), {}).range == FULL and not with_range(table_of(["train"]), {}).notes
    assert with_range(table_of(["train"]), {"0": 4000}, "full").range == FULL
    assert with_range(table_of(["train"]), {"0": 4000}, "10-20").range == (10, 20)
    assert with_range(table_of(["train"]).replace(range=(0, 9)), {}).range == (0, 9)


@pytest.fixture(scope="module")
def mammograms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("twelve")
    for number, name in enumerate("AB"):
        (folder / "d" / name).mkdir(parents=True)
        for index in range(12):
            values = np.random.default_rng(100 * number + index).integers(0, 4096, (20, 24))
            Image.fromarray(values.astype(np.uint16)).save(folder / "d" / name / f"{index}.png")
    return folder / "d"


def test_show_audit_and_pack_say_and_use_the_range(mammograms, tmp_path):
    for command in ("show", "audit"):
        result = CliRunner().invoke(main, ["data", command, str(mammograms), "--out", str(tmp_path / command)])
        assert result.exit_code == 0 and "0 becomes black and 4095 white" in result.output, result.output
    table, path = pack_data(mammograms, tmp_path / "packed", image_size=(20, 24))
    packed = load_table(path)
    assert table.range == packed.range == (0, 4095)
    np.testing.assert_array_equal(packed.images[0], read_image(table.files[0], Resizing(range=(0, 4095))))
    assert config_with_range(load_config(), packed).data.range == "0-4095"


def test_a_run_stores_the_range_and_predicts_with_it(mammograms, tmp_path, monkeypatch):
    settings = ["data.image_size=20x24", "train.epochs=1", "train.batch_size=8", "evaluate.num_resamples=20",
                "train.tensorboard=false"]  # fmt: skip
    run = kmed.fit(load_config(overrides=[("data.path", str(mammograms)), *settings]), out=tmp_path / "run")
    assert run.read_config().data.range == "0-4095"
    assert json.loads(run.classes.read_text())["range"] == [0, 4095]
    answers = list(kmed.classify_files(run.folder, [str(mammograms / "A")]))
    eight = tmp_path / "eight"
    eight.mkdir()
    for path in sorted((mammograms / "A").iterdir()):
        Image.fromarray(read_image(path, Resizing(range=(0, 4095)))).save(eight / path.name)
    same = list(kmed.classify_files(run.folder, [str(eight)]))
    assert [answer.probs for answer in answers] == [answer.probs for answer in same]


def test_a_run_of_an_earlier_version_has_the_full_range():
    assert Resizing.from_settings(load_config().data).range == FULL
