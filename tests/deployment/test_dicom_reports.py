"""Structured reports: read back by pydicom and highdicom, with the probabilities, the model and the source in them."""

import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner

import kmed
from kmed.cli.main import main
from kmed.deployment import dicom_reports
from kmed.deployment.dicom_reports import DicomReports, ModelName
from kmed.errors import ConfigError, DataError

pydicom = pytest.importorskip("pydicom", reason="pip install kmed[dicom]")
highdicom = pytest.importorskip("highdicom", reason="pip install kmed[dicom]")

MODEL = ModelName("xrays", "kmed 0.1.0, model 0123456789ab", "01" * 32, ("model: vit", "file: vit.tflite"))
PROBS = {"Effusion": 0.8125, "No Finding": 1e-9, "Pleural_Thickening": 0.25}


def write_source(path, pixels=None, **elements):
    """Writes a DICOM picture that belongs to a patient, a study and a series."""
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4) if pixels is None else pixels
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.SecondaryCaptureImageStorage, pydicom.uid.generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = pydicom.uid.generate_uid(), pydicom.uid.generate_uid()
    dataset.SpecificCharacterSet = "ISO_IR 100"  # Latin-1
    dataset.PatientName, dataset.PatientID = "Müller^Jörg", "id-7"
    dataset.PatientBirthDate, dataset.PatientSex, dataset.StudyDate = "19500102", "M", "20240506"
    dataset.StudyTime, dataset.StudyID, dataset.AccessionNumber = "070809", "S1", "A1"
    dataset.Modality = "OT"
    colour = pixels.ndim == 3 and pixels.shape[-1] == 3
    if pixels.ndim == 3 and not colour:
        dataset.NumberOfFrames = len(pixels)
    dataset.Rows, dataset.Columns = pixels.shape[:2] if colour or pixels.ndim == 2 else pixels.shape[1:]
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.size % 2)
    dataset["PixelData"].VR = "OB"
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path, enforce_file_format=True)
    return str(path)


def report_on(path, folder, *, found=("Effusion",), unlike=False, probs=PROBS):
    return DicomReports(folder, MODEL, [str(path)]).write(str(path), probs, found, unlike)


def read_groups(path) -> dict:
    """Returns {class name: (certainty in percent, decision)} of a report, by pydicom alone."""
    read = {}
    for part in pydicom.dcmread(path).ContentSequence:
        if part.ConceptNameCodeSequence[0].CodeMeaning == "Imaging Measurements":
            for group in part.ContentSequence:
                items = {item.ConceptNameCodeSequence[0].CodeMeaning: item for item in group.ContentSequence}
                certainty = items.get("Certainty of Finding")
                decision = items.get("Presence of property", items.get("Resemblance to the training images"))
                read[items["Tracking Identifier"].TextValue] = (
                    None if certainty is None else float(certainty.MeasuredValueSequence[0].FloatingPointValue),
                    decision.ConceptCodeSequence[0].CodeMeaning,
                )
    return read


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path / "chest.dcm")


@pytest.fixture
def strict(monkeypatch):
    """pydicom refuses values that break the standard instead of warning of them."""
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.RAISE)
    monkeypatch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.RAISE)


def test_the_probabilities_and_decisions_are_read_back_by_pydicom(source, tmp_path, strict):
    report = report_on(source, tmp_path / "reports")
    assert report == str(tmp_path / "reports" / "chest_report.dcm")
    read = read_groups(report)
    assert {name: value for name, (value, _) in read.items() if value is not None} == {
        name: pytest.approx(100 * prob, rel=1e-12) for name, prob in PROBS.items()
    }
    decisions = {name: decision for name, (_, decision) in read.items()}
    assert decisions == {
        "Effusion": "Present",
        "No Finding": "Absent",
        "Pleural_Thickening": "Absent",
        "The image as a whole": "Like the training images",
    }


def test_a_report_passes_the_checks_of_highdicom_and_names_the_model(source, tmp_path):
    report = highdicom.sr.srread(report_on(source, tmp_path))
    assert isinstance(report, highdicom.sr.Comprehensive3DSR)
    assert isinstance(report.content, highdicom.sr.MeasurementReport)
    groups = report.content.get_image_measurement_groups()
    assert [group.tracking_identifier for group in groups] == [*PROBS, "The image as a whole"]
    measured = [group.get_measurements()[0].value for group in groups[:3]]
    np.testing.assert_allclose(measured, [100 * prob for prob in PROBS.values()], rtol=1e-12)
    assert groups[0].finding_type.meaning == "Effusion" and groups[0].finding_type.scheme_designator == "99KMED"
    (observer,) = report.content.get_observer_contexts()
    device = observer.observer_identifying_attributes
    assert (device.name, device.model_name) == (MODEL.name, MODEL.version)
    content = (tmp_path / "chest_report.dcm").read_bytes()
    assert [content.count(line.encode()) for line in MODEL.settings] == [len(groups)] * 2
    assert (report.CompletionFlag, report.VerificationFlag, report.PreliminaryFlag) == (
        "COMPLETE", "UNVERIFIED", "PRELIMINARY"
    )  # fmt: skip


def test_a_report_belongs_to_the_patient_the_study_and_the_image(source, tmp_path, strict):
    image, report = pydicom.dcmread(source), pydicom.dcmread(report_on(source, tmp_path))
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate",
                    "StudyTime", "StudyID", "AccessionNumber"):  # fmt: skip
        assert report[keyword].value == image[keyword].value, keyword
    assert str(report.PatientName) == "Müller^Jörg" and report.SpecificCharacterSet == "ISO_IR 192"
    assert report.SeriesInstanceUID != image.SeriesInstanceUID and report.Modality == "SR"
    (evidence,) = highdicom.sr.srread(tmp_path / "chest_report.dcm").get_evidence()
    assert evidence == (image.StudyInstanceUID, image.SeriesInstanceUID, image.SOPInstanceUID, image.SOPClassUID)


def test_of_several_frames_the_first_is_referenced(tmp_path):
    path = write_source(tmp_path / "cine.dcm", np.zeros((5, 3, 4), np.uint8))
    group = highdicom.sr.srread(report_on(path, tmp_path)).content.get_image_measurement_groups()[0]
    assert group.source_images[0].referenced_frame_numbers == [1]


def test_reports_of_a_study_make_one_series(tmp_path):
    study = pydicom.uid.generate_uid()
    paths = [write_source(tmp_path / f"{name}.dcm", StudyInstanceUID=study) for name in "ab"]
    paths.append(write_source(tmp_path / "c.dcm"))
    reports = DicomReports(tmp_path / "out", MODEL, paths)
    read = [pydicom.dcmread(reports.write(path, PROBS, ["Effusion"], None)) for path in paths]
    assert read[0].SeriesInstanceUID == read[1].SeriesInstanceUID != read[2].SeriesInstanceUID
    assert [report.InstanceNumber for report in read] == [1, 2, 1]
    assert len({report.SOPInstanceUID for report in read}) == 3


def test_names_of_classes_that_are_long_or_not_ascii(source, tmp_path, strict):
    long = "neutrofil z segmentowanym jądrem " * 3 + "x"
    report = report_on(source, tmp_path, probs={long: 0.5, "白血球": 0.25}, found=["白血球"], unlike=True)
    assert read_groups(report) == {
        long: (50, "Absent"), "白血球": (25, "Present"), "The image as a whole": (None, "Unlike the training images")
    }  # fmt: skip
    first = highdicom.sr.srread(report).content.get_image_measurement_groups()[0]
    assert first.finding_type.meaning == long[:62]  # 64 bytes


def test_what_anonymisers_remove_stays_empty(tmp_path, strict):
    removed = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID")
    path = write_source(tmp_path / "a.dcm", **dict.fromkeys(removed), SpecificCharacterSet=None)
    report = pydicom.dcmread(report_on(path, tmp_path))
    assert all(keyword in report and not report[keyword].value for keyword in removed)


def test_sources_and_reports_of_the_same_name_are_not_replaced(tmp_path):
    paths = []
    for folder in ("1", "2"):
        (tmp_path / folder).mkdir()
        paths.append(write_source(tmp_path / folder / "a.dcm"))
    paths.append(write_source(tmp_path / "a_report.dcm"))
    before = (tmp_path / "a_report.dcm").read_bytes()
    reports = DicomReports(tmp_path, MODEL, paths)
    written = [reports.write(path, PROBS, [], None) for path in paths]
    names = ["a-2_report.dcm", "a-3_report.dcm", "a_report_report.dcm"]
    assert written == [str(tmp_path / name) for name in names]
    assert (tmp_path / "a_report.dcm").read_bytes() == before


def test_pictures_that_are_not_dicom_are_refused_before_anything_is_predicted(source, tmp_path):
    (tmp_path / "smear.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"smear.png is not a DICOM file \(1 of 2 are not\).*leave out --dicom-sr"):
        DicomReports(tmp_path / "reports", MODEL, [source, str(tmp_path / "smear.png")])
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
def test_an_image_without_an_identifier_is_one_line(tmp_path, keyword):
    path = write_source(tmp_path / "a.dcm")
    dataset = pydicom.dcmread(path)
    dataset[keyword].value = ""
    dataset.save_as(path)
    with pytest.raises(DataError, match=f"has no {keyword}, which a structured report must name"):
        DicomReports(tmp_path, MODEL, [path]).check(path)


def test_what_highdicom_refuses_is_one_line_without_the_patient(tmp_path):
    path = write_source(tmp_path / "a.dcm", PatientSex="SECRET")
    with pytest.raises(DataError, match="highdicom refuses") as caught:
        report_on(path, tmp_path / "reports")
    assert "SECRET" not in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "reports").exists()


def test_a_missing_highdicom_is_named_with_how_to_install_it(source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(ConfigError, match=r"--dicom-sr needs highdicom.*pip install kmed\[dicom\]"):
        DicomReports(tmp_path, MODEL, [source])


@pytest.fixture(scope="module")
def studies(small_npz, tmp_path_factory):
    """Three test pictures of the run as DICOM files."""
    folder = tmp_path_factory.mktemp("studies")
    with np.load(small_npz) as data:
        for number, image in enumerate(data["images"][data["split"] == "test"][:3]):
            write_source(folder / f"{number}.dcm", image)
    return folder


def test_the_command_writes_a_report_per_image_that_says_what_it_prints(short_run, studies, tmp_path):
    out = tmp_path / "answers.jsonl"
    arguments = ["--quiet", "predict", str(short_run.folder), str(studies), "--dicom-sr", str(tmp_path / "reports")]
    result = CliRunner().invoke(main, [*arguments, "--json", "--out", str(out)])
    assert result.exit_code == 0, result.output
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(answers) == len(list((tmp_path / "reports").iterdir())) == 3
    for answer in answers:
        read = read_groups(answer["report"])
        for name, prob in answer["probs"].items():
            assert read[name] == (pytest.approx(100 * prob), "Present" if name in answer["found"] else "Absent")
    device = highdicom.sr.srread(answers[0]["report"]).content.get_observer_contexts()[0]
    digest = dicom_reports._digest(short_run.model)
    expected = ("short", f"kmed {kmed.__version__}, model {digest[:12]}")
    attributes = device.observer_identifying_attributes
    assert (attributes.name, attributes.model_name) == expected


def test_an_image_on_which_no_report_can_be_written_is_named_and_the_others_go_on(short_run, studies, tmp_path):
    with_it = tmp_path / "with"
    with_it.mkdir()
    write_source(with_it / "a.dcm", np.zeros((32, 40, 3), np.uint8), StudyInstanceUID="")
    write_source(with_it / "b.dcm", np.zeros((32, 40, 3), np.uint8), PatientSex="X")
    reports = tmp_path / "reports"
    answers = list(kmed.classify_files(short_run.folder, [with_it, studies], dicom_sr=reports, batch_size=2))
    assert "has no StudyInstanceUID" in answers[0].error and "highdicom refuses" in answers[1].error
    assert [answer.report is not None for answer in answers] == [False, False, True, True, True]
    assert sorted(path.name for path in reports.iterdir()) == [f"{number}_report.dcm" for number in range(3)]


def test_the_command_refuses_pictures_of_other_kinds(short_run, studies, tmp_path):
    (tmp_path / "smear.png").write_bytes(b"\x89PNG")
    result = CliRunner().invoke(
        main, ["predict", str(short_run.folder), str(tmp_path), str(studies), "--dicom-sr", str(tmp_path / "reports")]
    )
    assert result.exit_code == 1 and "is not a DICOM file (1 of 4 are not)" in result.output


def test_reports_are_per_image_also_where_answers_are_per_case(short_run, studies, tmp_path):
    answers = list(kmed.classify_files(short_run.folder, [studies], by="folder", dicom_sr=tmp_path / "reports"))
    assert [(answer.pictures, answer.report) for answer in answers] == [(3, None)]
    assert len(list((tmp_path / "reports").iterdir())) == 3
