"""DICOM files written by pydicom, and the pixels that a viewer would show, worked out by hand."""

import io

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from kmed.cli.main import main
from kmed.data.dicom import is_dicom
from kmed.data.images import read_image
from kmed.data.readers.load import load_table
from kmed.errors import ConfigError, DataError

pydicom = pytest.importorskip("pydicom", reason="pip install kmed[dicom]")
VALUES = np.array([[0, 100, 200], [300, 400, 500]])


def write(path, pixels, *, kind="MONOCHROME2", bits=16, signed=False, syntax=None, preamble=True, **elements):
    """Writes a DICOM file of stored values (H, W), (H, W, 3) or (F, H, W), with further elements."""
    dtype = np.dtype(f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}")
    colour = pixels.ndim == 3 and pixels.shape[-1] == 3
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax or pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.SecondaryCaptureImageStorage, pydicom.uid.generate_uid()
    dataset.PatientName, dataset.PatientID = "Nobody^Known", "secret-id"
    dataset.Rows, dataset.Columns = pixels.shape[:2] if colour or pixels.ndim == 2 else pixels.shape[1:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 3 if colour else 1, kind
    if colour:
        dataset.PlanarConfiguration = 0
    if pixels.ndim == 3 and not colour:
        dataset.NumberOfFrames = len(pixels)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * dtype.itemsize, bits, bits - 1
    dataset.PixelRepresentation = int(signed)
    for name, value in elements.items():
        setattr(dataset, name, value)
    data = pixels.astype(dtype).tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OW" if dtype.itemsize == 2 else "OB"
    if preamble:
        dataset.save_as(path, enforce_file_format=True)
    else:
        del dataset.file_meta
        dataset.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
    return path


def grey(path) -> list:
    pixels = read_image(path)
    assert pixels.dtype == np.uint8 and (pixels[..., :1] == pixels).all()
    return pixels[..., 0].tolist()


def test_without_a_window_the_range_of_the_pixels_is_shown(tmp_path):
    assert grey(write(tmp_path / "a.dcm", VALUES)) == [[0, 51, 102], [153, 204, 255]]


def test_low_is_bright_in_monochrome1(tmp_path):
    assert grey(write(tmp_path / "a.dcm", VALUES, kind="MONOCHROME1")) == [[255, 204, 153], [102, 51, 0]]


def test_padding_is_black_and_ignored_by_the_range(tmp_path):
    values = VALUES.copy()
    values[0, 0] = 4000
    for kind, expected in (("MONOCHROME2", [0, 0, 64]), ("MONOCHROME1", [0, 255, 191])):
        path = write(tmp_path / f"{kind}.dcm", values, kind=kind, PixelPaddingValue=4000)
        assert grey(path)[0] == expected  # 100 is the lowest, 500 the highest: 200 is a quarter


def test_rescale_comes_before_the_window(tmp_path):
    # Values 0..500 become -1000..0; a window of 500 around -750 shows -1000 to -500.
    path = write(tmp_path / "a.dcm", VALUES, RescaleSlope="2", RescaleIntercept="-1000", WindowCenter="-750",
                 WindowWidth="500", VOILUTFunction="LINEAR_EXACT")  # fmt: skip
    assert grey(path) == [[0, 102, 204], [255, 255, 255]]


def test_linear_windows_follow_the_standard(tmp_path):
    # PS3.3 C.11.2.1.2: y = ((x - (c - 0.5)) / (w - 1) + 0.5) * range, with c = 250, w = 201.
    path = write(tmp_path / "a.dcm", VALUES, WindowCenter="250", WindowWidth="201")
    expected = np.clip(((VALUES - 249.5) / 200 + 0.5), 0, 1) * 255
    assert grey(path) == np.rint(expected).astype(int).tolist()


def test_the_first_of_several_windows_is_taken(tmp_path):
    several = write(tmp_path / "a.dcm", VALUES, WindowCenter=["250", "50"], WindowWidth=["201", "10"])
    assert grey(several) == grey(write(tmp_path / "b.dcm", VALUES, WindowCenter="250", WindowWidth="201"))


def test_sigmoid_windows(tmp_path):
    path = write(tmp_path / "a.dcm", VALUES, WindowCenter="250", WindowWidth="100", VOILUTFunction="SIGMOID")
    expected = 255 / (1 + np.exp(-4 * (VALUES - 250) / 100))  # PS3.3 C.11.2.1.3.1
    assert np.abs(np.array(grey(path)) - expected).max() <= 0.5 + 1e-6


def test_signed_values(tmp_path):
    path = write(tmp_path / "a.dcm", VALUES - 250, signed=True, WindowCenter="0", WindowWidth="500",
                 VOILUTFunction="LINEAR_EXACT")  # fmt: skip
    assert grey(path) == [[0, 51, 102], [153, 204, 255]]


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_bits_stored(tmp_path, bits):
    values = np.linspace(0, 2**bits - 1, 6).round().astype(int).reshape(2, 3)
    assert grey(write(tmp_path / "a.dcm", values, bits=bits)) == [[0, 51, 102], [153, 204, 255]]


def test_a_voi_lut_is_looked_up(tmp_path):
    lut = pydicom.Dataset()
    lut.LUTDescriptor, lut.LUTData = [4, 0, 8], [0, 10, 200, 255]
    lut["LUTDescriptor"].VR = "US"
    lut["LUTData"].VR = "US"
    path = write(tmp_path / "a.dcm", np.array([[0, 1], [2, 3]]), VOILUTSequence=[lut])
    assert grey(path) == [[0, 10], [200, 255]]


def test_one_value_everywhere_is_black(tmp_path):
    assert grey(write(tmp_path / "a.dcm", np.full((2, 2), 7))) == [[0, 0], [0, 0]]


def test_colour(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (4, 6, 3))
    assert (read_image(write(tmp_path / "a.dcm", rgb, kind="RGB", bits=8)) == rgb).all()
    ybr = np.array(Image.fromarray(rgb.astype(np.uint8)).convert("YCbCr"))
    found = read_image(write(tmp_path / "b.dcm", ybr, kind="YBR_FULL", bits=8))
    assert np.abs(found.astype(int) - rgb).max() <= 2  # two roundings


def test_palettes(tmp_path):
    tables = {"Red": [0, 65535, 0], "Green": [0, 0, 65535], "Blue": [32896, 0, 0]}
    elements = {}
    for name, table in tables.items():
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [3, 0, 16]
        elements[f"{name}PaletteColorLookupTableData"] = np.array(table, "<u2").tobytes()
    path = write(tmp_path / "a.dcm", np.array([[0, 1, 2]]), kind="PALETTE COLOR", bits=8, **elements)
    assert read_image(path).tolist() == [[[0, 0, 128], [255, 0, 0], [0, 255, 0]]]


def test_of_several_frames_the_first_is_read(tmp_path):
    first = VALUES.T  # (3, 2), since a last axis of 3 is taken for colour
    frames = np.stack([first, first + 7, first + 9, first])
    assert grey(write(tmp_path / "a.dcm", frames)) == [[0, 153], [51, 204], [102, 255]]


def test_compressed_files(tmp_path):
    path = write(tmp_path / "a.dcm", VALUES)
    dataset = pydicom.dcmread(path)
    dataset.compress(pydicom.uid.RLELossless)
    dataset.save_as(path)
    assert grey(path) == [[0, 51, 102], [153, 204, 255]]


def test_an_undecodable_syntax_is_named(tmp_path):
    path = write(tmp_path / "a.dcm", VALUES)
    dataset = pydicom.dcmread(path)
    dataset.PixelData = pydicom.encaps.encapsulate([b"\0" * 64])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLSLossless
    dataset.save_as(path)
    with pytest.raises(DataError, match="is stored as JPEG-LS Lossless.*pip install pylibjpeg") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_files_are_known_by_suffix_or_content(tmp_path):
    plain = write(tmp_path / "1.2.840.7", VALUES)
    assert is_dicom(plain) and is_dicom(plain.read_bytes()) and not is_dicom(b"") and not is_dicom(tmp_path / "none")
    assert grey(plain) == grey(plain.read_bytes()) == [[0, 51, 102], [153, 204, 255]]
    old = write(tmp_path / "old", VALUES, preamble=False)
    assert old.read_bytes()[128:132] != b"DICM" and is_dicom(old)
    assert grey(old) == grey(old.read_bytes()) == [[0, 51, 102], [153, 204, 255]]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM"])
def test_a_picture_of_another_kind_is_not_dicom_whatever_its_suffix(tmp_path, kind):
    path = tmp_path / ("exported.dcm" if kind != "PPM" else "exported")
    Image.fromarray(np.full((8, 8, 3), 9, np.uint8)).save(path, kind)
    assert not is_dicom(path) and not is_dicom(path.read_bytes())
    assert abs(int(read_image(path)[4, 4, 0]) - 9) <= 1


@pytest.mark.parametrize("content", [b"", b"\x08", b"\x08\0", b"\x02\0\0\0xx" * 2, b"\0" * 200, b"path,label\n" * 30])
def test_other_bytes_are_not_dicom_unless_the_suffix_says_so(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "a.DCM").write_bytes(content)
    assert not is_dicom(tmp_path / "a") and not is_dicom(content) and is_dicom(tmp_path / "a.DCM")


def test_a_damaged_stream_is_not_taken_for_a_missing_decoder(tmp_path):
    path = write(tmp_path / "a.dcm", np.zeros((8, 8)), bits=8)
    dataset = pydicom.dcmread(path)
    stream = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(stream, "JPEG")
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    for content, reason in (
        (stream.getvalue()[:-40], "Truncated File Read|truncated"),
        (b"\xff\xd8" + bytes(60), "identify image file it"),
    ):
        dataset.PixelData = pydicom.encaps.encapsulate([content])
        dataset["PixelData"].is_undefined_length = True
        dataset.save_as(path)
        with pytest.raises(DataError, match=f"JPEG Baseline.*cannot be decoded: .*({reason})") as caught:
            read_image(path)
        assert "\n" not in str(caught.value) and "no installed decoder" not in str(caught.value)


def test_a_syntax_without_any_decoder_is_named(tmp_path):
    path = write(tmp_path / "a.dcm", VALUES)
    dataset = pydicom.dcmread(path)
    dataset.PixelData = pydicom.encaps.encapsulate([bytes(64)])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
    dataset.save_as(path)
    with pytest.raises(DataError, match="is stored as MPEG2 .* which pydicom does not read"):
        read_image(path)


@pytest.mark.parametrize(
    ("name", "vr"), [("RescaleSlope", "DS"), ("RescaleIntercept", "DS"), ("PixelPaddingValue", "US")]
)
def test_empty_elements_are_treated_as_absent(tmp_path, name, vr):
    path = write(tmp_path / "a.dcm", VALUES, RescaleSlope="1", RescaleIntercept="0")
    dataset = pydicom.dcmread(path)
    dataset.add_new(name, vr, None)
    dataset.save_as(path)
    assert grey(path) == [[0, 51, 102], [153, 204, 255]]


def test_padding_stored_unsigned_beside_signed_pixels(tmp_path):
    values = VALUES - 250
    values[0, 0] = -2000
    path = write(tmp_path / "a.dcm", values, signed=True)
    dataset = pydicom.dcmread(path)
    dataset.add_new("PixelPaddingValue", "US", 2**16 - 2000)
    dataset.save_as(path)
    assert grey(path)[0] == [0, 0, 64] and grey(path)[1][2] == 255


@pytest.mark.parametrize("group", ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"])
def test_rescale_and_window_of_functional_groups(tmp_path, group):
    rescale, window, groups = (pydicom.Dataset() for _ in range(3))
    rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = "2", "-1000", "HU"
    window.WindowCenter, window.WindowWidth, window.VOILUTFunction = "-750", "500", "LINEAR_EXACT"
    groups.PixelValueTransformationSequence, groups.FrameVOILUTSequence = [rescale], [window]
    first = VALUES.T  # (3, 2), since a last axis of 3 is taken for colour
    path = write(tmp_path / "a.dcm", np.stack([first, first + 7]), **{group: [groups] * 2})
    assert grey(path) == np.array([[0, 102, 204], [255, 255, 255]]).T.tolist()


def test_an_error_does_not_quote_the_value_of_an_element(tmp_path):
    path = write(tmp_path / "a.dcm", VALUES, NumberOfFrames="0001")
    path.write_bytes(path.read_bytes().replace(b"0001", b"Doe^"))
    with pytest.raises(DataError, match="cannot be read as DICOM: invalid literal for int.. with base 10. ") as caught:
        read_image(path)
    assert "Doe" not in str(caught.value)


def test_a_uid_that_swallowed_the_patient_is_not_quoted(tmp_path, recwarn):
    path = write(tmp_path / "a.dcm", VALUES)
    content = bytearray(path.read_bytes())
    length = content.index(b"\x02\x00\x10\x00UI") + 6  # of the transfer syntax
    content[length : length + 2] = (360).to_bytes(2, "little")
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_image(path)
    messages = "".join([str(caught.value), *(str(warning.message) for warning in recwarn)])
    assert "secret" not in messages and "Nobody" not in messages


def test_whatever_is_damaged_is_one_line_without_patient_data(tmp_path, recwarn):
    path = write(tmp_path / "a.dcm", VALUES, WindowCenter="250", WindowWidth="201")
    content, rng, errors = path.read_bytes(), np.random.default_rng(0), []
    for _ in range(400):
        damaged = bytearray(content)
        for place in rng.integers(132, len(content), rng.integers(1, 6)):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_image(path)
        except DataError as error:
            errors.append(str(error))
    assert len(errors) > 20 and not any("\n" in line for line in errors)
    messages = "".join(errors + [str(warning.message) for warning in recwarn])
    assert "secret" not in messages and "Nobody" not in messages


@pytest.mark.parametrize("content", [b"", b"no picture at all", b"\0" * 128 + b"DICM" + b"\0\1\2" * 50])
def test_damaged_files_are_one_line_without_patient_data(tmp_path, content):
    path = tmp_path / "a.dcm"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_image(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_truncated_file_is_one_line_without_patient_data(tmp_path):
    path = write(tmp_path / "a.dcm", VALUES)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match="cannot be read as DICOM") as caught:
        read_image(path)
    assert "\n" not in str(caught.value) and "secret-id" not in str(caught.value)


def test_a_file_without_pixels_or_of_a_strange_kind_is_refused(tmp_path):
    path = write(tmp_path / "a.dcm", VALUES)
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    dataset.save_as(path)
    with pytest.raises(DataError, match="holds no pixels"):
        read_image(path)
    with pytest.raises(DataError, match="photometric interpretation HSV"):
        read_image(write(tmp_path / "b.dcm", VALUES, kind="HSV"))
    with pytest.raises(DataError, match="There is no picture"):
        read_image(tmp_path / "absent.dcm")


def test_a_missing_pydicom_is_named_with_how_to_install_it(tmp_path, monkeypatch):
    path = write(tmp_path / "a.dcm", VALUES)
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(ConfigError, match=r"pip install kmed\[dicom\]"):
        read_image(path)


def test_class_folders_of_dicom_files(tmp_path):
    for name in ("NORMAL", "PNEUMONIA"):
        (tmp_path / name).mkdir()
        for number in range(3):
            write(tmp_path / name / f"{number}.dcm", VALUES + number)
    table = load_table(tmp_path)
    assert len(table) == 6 and list(table.class_names) == ["NORMAL", "PNEUMONIA"]
    result = CliRunner().invoke(main, ["--quiet", "data", "show", str(tmp_path), "--out", str(tmp_path / "look")])
    assert result.exit_code == 0, result.output
    (tmp_path / "NORMAL" / "9.dcm").write_bytes(b"damaged")
    result = CliRunner().invoke(main, ["--quiet", "data", "show", str(tmp_path), "--out", str(tmp_path / "look2")])
    assert result.exit_code == 1 and "NORMAL/9.dcm (holds no pixels" in result.output


def test_pictures_of_other_formats_are_still_read(tmp_path):
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), 9, np.uint8)).save(file, "PNG")
    assert (read_image(file.getvalue()) == 9).all()


# ----- what cannot be used is ignored where the pixels are whole -----

RANGE = [[0, 51, 102], [153, 204, 255]]  # the range of VALUES


@pytest.mark.parametrize(
    "elements",
    [
        {"WindowCenter": "250", "WindowWidth": "0"},
        {"WindowCenter": "250", "WindowWidth": "-100"},
        {"WindowCenter": "0.45", "WindowWidth": "0.91"},
        {"WindowCenter": "250", "WindowWidth": "0", "VOILUTFunction": "LINEAR_EXACT"},
        {"WindowCenter": "250", "WindowWidth": "0", "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": "250", "WindowWidth": "200", "VOILUTFunction": "CUBIC"},
        {"WindowCenter": "250"},
        {"WindowWidth": "200"},
        {"WindowCenter": "", "WindowWidth": ""},
        {"WindowCenter": "250", "WindowWidth": "nan"},
        {"WindowCenter": "inf", "WindowWidth": "200"},
        {"RescaleSlope": "0", "RescaleIntercept": "5"},
        {"RescaleSlope": "nan", "RescaleIntercept": "5"},
        {"RescaleSlope": "1e308", "RescaleIntercept": "5"},
        {"RescaleSlope": "2", "RescaleIntercept": "inf"},
        {"RescaleSlope": "2"},
        {"RescaleSlope": "", "RescaleIntercept": ""},
        {"ModalityLUTSequence": []},
        {"ModalityLUTSequence": [pydicom.Dataset()]},
        {"VOILUTSequence": []},
        {"VOILUTSequence": [pydicom.Dataset()]},
        {"PixelPaddingValue": None},
        {"PhotometricInterpretation": ""},
        {"BitsStored": 24, "HighBit": 23},
        {"BitsStored": 0},
        {"HighBit": 3},
        {"PixelRepresentation": None},
        {"SamplesPerPixel": None},
        {"NumberOfFrames": None},
    ],
    ids=str,
)
def test_elements_that_cannot_be_used_are_ignored(tmp_path, monkeypatch, elements):
    monkeypatch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.IGNORE)
    path = write(tmp_path / "a.dcm", VALUES, **elements)
    assert grey(path) == RANGE == grey(path.read_bytes())


@pytest.mark.parametrize(
    "missing", ["PhotometricInterpretation", "SamplesPerPixel", "PixelRepresentation", "BitsStored", "HighBit"]
)
def test_elements_that_are_missing_have_their_usual_value(tmp_path, missing):
    path = write(tmp_path / "a.dcm", VALUES)
    dataset = pydicom.dcmread(path)
    delattr(dataset, missing)
    dataset.save_as(path)
    assert grey(path) == RANGE


def test_text_in_place_of_a_window_is_ignored(tmp_path):
    path = write(tmp_path / "a.dcm", VALUES, WindowCenter="250", WindowWidth="201")
    path.write_bytes(path.read_bytes().replace(b"201 ", b"Doe^"))
    assert grey(path) == RANGE


def test_the_first_usable_window_is_taken(tmp_path):
    path = write(tmp_path / "a.dcm", VALUES, WindowCenter=["9", "250"], WindowWidth=["0", "500"],
                 VOILUTFunction="LINEAR_EXACT")  # fmt: skip
    assert grey(path) == RANGE
    path = write(tmp_path / "a.dcm", VALUES, WindowCenter=["250", "9"], WindowWidth=["200", "10"],
                 VOILUTFunction="LINEAR_EXACT")  # fmt: skip
    assert grey(path) == [[0, 0, 64], [191, 255, 255]]


def test_an_empty_function_is_linear_as_a_missing_one_is(tmp_path):
    window = {"WindowCenter": "250", "WindowWidth": "201"}
    expected = grey(write(tmp_path / "a.dcm", VALUES, **window))
    assert expected != RANGE and grey(write(tmp_path / "b.dcm", VALUES, **window, VOILUTFunction="")) == expected


def test_an_unusable_window_of_monochrome1_stays_inverted(tmp_path):
    path = write(tmp_path / "a.dcm", VALUES, kind="MONOCHROME1", WindowCenter="250", WindowWidth="0")
    assert grey(path) == (255 - np.array(RANGE)).tolist()


def test_values_of_large_pictures_are_scaled_strip_by_strip(tmp_path, monkeypatch):
    values = np.random.default_rng(0).integers(0, 4096, (50, 7))
    elements = {"PixelPaddingValue": int(values.max()), "RescaleSlope": "-2", "RescaleIntercept": "7"}
    path = write(tmp_path / "a.dcm", values, **elements)
    whole = read_image(path)
    monkeypatch.setattr("kmed.data.dicom_values._PIXELS_AT_ONCE", 21)
    np.testing.assert_array_equal(read_image(path), whole)
