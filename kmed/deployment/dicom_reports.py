"""`kmed predict --dicom-sr`: a DICOM structured report per picture, by highdicom.

A report is a Comprehensive 3D SR with the template TID 1500, which IHE's profile AI Results asks for. Its findings
have no codes of a public terminology, since kmed knows the names of classes and not what they mean in medicine: they
are coded in a private scheme, by a digest of the name, so that a name has the same code in every run.
"""

import dataclasses
import hashlib
import os
import pathlib
import uuid
from collections.abc import Sequence
from typing import Any

from kmed.data.dicom import is_dicom
from kmed.errors import ConfigError, DataError
from kmed.files import digest_of, replacing
from kmed.version import __version__

SCHEME = "99KMED"  # of a private code, as PS3.3 8.2 names such schemes
SERIES_NUMBER = 9000  # above those of scanners
# The identifiers without which a report cannot say to which image it belongs.
_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
# What must exist in a report even if it is not known; anonymised files often lack it.
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
_LONG_STRING = 64  # bytes of a code's meaning: DICOM allows as many characters, but some programs count bytes


@dataclasses.dataclass(frozen=True)
class ModelName:
    """What a report says about the model.

    Attributes:
      name: of the run folder.
      version: of kmed, and the digest of the model's file, which changes with every training.
      digest: sha256 of the model's file.
      settings: one sentence each.
    """

    name: str
    version: str
    digest: str
    settings: tuple[str, ...]


def name_model(run, predictor) -> ModelName:
    """Returns the ModelName of a run's model in the format in which it is open."""
    config, digest = run.read_config(), _digest(predictor.path)
    settings = (
        f"model: {config.model.name}",
        f"task: {config.task}",
        f"file: {predictor.path.name}, sha256 {digest}",
        "probabilities: calibrated on the validation split of the run",
        "for research only, not for clinical use",
    )
    return ModelName(run.folder.resolve().name, f"kmed {__version__}, model {digest[:12]}", digest, settings)


def _digest(path: pathlib.Path) -> str:
    """Returns the sha256 of a file, or of the digests of all files in a folder, as a SavedModel is."""
    if path.is_dir():
        parts = [_digest(file) for file in sorted(path.rglob("*")) if file.is_file()]
        return hashlib.sha256("".join(parts).encode()).hexdigest()
    return digest_of(path)


class DicomReports:
    """Writes the reports of one call of `kmed predict`; those of a study make a series."""

    def __init__(self, folder, model: ModelName, paths: Sequence[str]):
        """Prepares the reports for the files `paths`, in a folder that is created with the first of them.

        Raises: ConfigError: highdicom is not installed. DataError: a file is not DICOM.
        """
        self.folder, self.model = pathlib.Path(folder), model
        self.highdicom = _import_highdicom()
        others = [path for path in paths if not is_dicom(path)]
        if others:
            raise DataError(
                f"{others[0]} is not a DICOM file ({len(others)} of {len(paths)} are not). A structured report names "
                "the patient, the study and the image of a DICOM file: give only such files, or leave out --dicom-sr."
            )
        self.series: dict[str, tuple[str, int]] = {}  # study -> its series of reports, and how many there are
        # A source is never overwritten, even if it lies in the same folder.
        self.taken = {pathlib.Path(path).resolve() for path in paths}

    def check(self, path: str) -> None:
        """Raises DataError if the picture lacks what a report refers to; before the model predicts it."""
        read_header(path)

    def write(self, path: str, probs: dict[str, float], found: Sequence[str], unlike: bool | None) -> str:
        """Writes the report for a picture and returns its path.

        Args:
          path: the picture's file.
          probs: class name -> calibrated probability.
          found: the names of the classes that are reported.
          unlike: whether the picture is unlike the training data; None: not known.
        Raises: DataError: highdicom refuses the picture's patient or study, or the picture is not readable any more.
        """
        header = read_header(path)
        study = str(header.StudyInstanceUID)
        series, count = self.series.get(study, (str(self.highdicom.UID()), 0))
        try:
            document = self._document(header, series, count + 1, self._findings(header, probs, found, unlike))
        except (ValueError, TypeError) as error:  # what highdicom's checks raise, which may quote the patient
            raise DataError(
                f"{path}: highdicom refuses to write a report on it ({type(error).__name__}). Check the patient's and "
                "the study's elements of the file, such as dates and PatientSex (M, F, O or empty)."
            ) from error
        self.series[study] = (series, count + 1)
        file = self._vacant(pathlib.Path(path).stem)
        with replacing(file) as temporary:
            document.save_as(temporary, enforce_file_format=True)
        return str(file)

    def _vacant(self, stem: str) -> pathlib.Path:
        """Returns the path of a report; pictures of one name in several folders get a number."""
        file, count = self.folder / f"{stem}_report.dcm", 2
        while file.resolve() in self.taken:
            file, count = self.folder / f"{stem}-{count}_report.dcm", count + 1
        self.taken.add(file.resolve())
        return file

    def _document(self, header, series: str, number: int, findings: list):
        from highdicom.coding_schemes import CodingSchemeIdentificationItem

        sr, own = self.highdicom.sr, uuid.UUID(bytes=bytes.fromhex(self.model.digest)[:16], version=4)
        device = sr.DeviceObserverIdentifyingAttributes(
            uid=self.highdicom.UID.from_uuid(str(own)),
            name=self.model.name,
            manufacturer_name="kmed",
            model_name=self.model.version,
        )
        observer = sr.ObserverContext(_codes().DCM.Device, device)
        content = sr.MeasurementReport(
            observation_context=sr.ObservationContext(observer_device_context=observer),
            procedure_reported=_codes().SCT.ImagingProcedure,
            imaging_measurements=findings,
        )
        return sr.Comprehensive3DSR(
            evidence=[header],
            content=content[0],
            series_instance_uid=series,
            series_number=SERIES_NUMBER,
            sop_instance_uid=self.highdicom.UID(),
            instance_number=number,
            manufacturer="kmed",
            manufacturer_model_name=_shortened(self.model.name),
            software_versions=self.model.version,
            device_serial_number=self.model.digest,
            series_description="Classification by kmed, not for clinical use",
            coding_schemes=[CodingSchemeIdentificationItem(SCHEME, name="kmed: class names by their sha256")],
            specific_character_set="ISO_IR 192",  # UTF-8 holds every patient's name and every class name
            is_complete=True,
        )

    def _findings(self, header, probs: dict[str, float], found: Sequence[str], unlike: bool | None) -> list:
        """Returns a measurement group per class, and one for the picture as a whole."""
        sr, codes = self.highdicom.sr, _codes()
        decisions = {True: codes.SCT.Present, False: codes.SCT.Absent}
        groups = [
            self._group(
                header,
                name,
                finding_type=private_code(name),
                measurements=[sr.Measurement(codes.DCM.CertaintyOfFinding, 100 * prob, codes.UCUM.Percent)],
                qualitative_evaluations=[
                    sr.QualitativeEvaluation(codes.DCM.PresenceOfProperty, decisions[name in found])
                ],
            )
            for name, prob in probs.items()
        ]
        if unlike is not None:
            answer = private_code("Unlike the training images" if unlike else "Like the training images")
            evaluation = sr.QualitativeEvaluation(private_code("Resemblance to the training images"), answer)
            groups.append(self._group(header, "The image as a whole", qualitative_evaluations=[evaluation]))
        return groups

    def _group(self, header, name: str, **fields):
        sr = self.highdicom.sr
        frames = [1] if int(header.get("NumberOfFrames") or 1) > 1 else None  # of several, the first is predicted
        return sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=sr.TrackingIdentifier(identifier=name, uid=self.highdicom.UID()),
            algorithm_id=sr.AlgorithmIdentification(
                self.model.name, self.model.version, self.model.settings, manufacturer="kmed"
            ),
            source_images=[sr.SourceImageForMeasurementGroup(header.SOPClassUID, header.SOPInstanceUID, frames)],
            **fields,
        )


def read_header(path: str | os.PathLike) -> Any:
    """Returns a picture's pydicom.Dataset without its pixels, completed with empty elements where a report needs them.

    Raises: DataError: it cannot be read, or lacks an identifier.
    """
    import pydicom

    try:
        header = pydicom.dcmread(path, force=True, stop_before_pixels=True)
        header.decode()  # its texts, which are written again as UTF-8
        missing = [keyword for keyword in _NEEDED if not header.get(keyword)]
    except Exception as error:  # pydicom raises whatever error the damage leads to
        raise DataError(f"{path} cannot be read as DICOM ({type(error).__name__}). Repair or remove it.") from error
    if missing:
        raise DataError(
            f"{path} has no {' and no '.join(missing)}, which a structured report must name. Leave out --dicom-sr, or "
            "take the file as it came from the archive."
        )
    for keyword in _MAY_BE_EMPTY:
        if keyword not in header:
            setattr(header, keyword, None)
    return header


def private_code(meaning: str):
    """Returns the highdicom.sr.CodedConcept of kmed's own scheme for a text, of which it keeps the first 64 bytes."""
    from highdicom.sr import CodedConcept

    return CodedConcept(hashlib.sha256(meaning.encode()).hexdigest()[:16], SCHEME, _shortened(meaning))


def _shortened(text: str) -> str:
    return text.encode()[:_LONG_STRING].decode(errors="ignore")


def _codes():
    from pydicom.sr.codedict import codes

    return codes


def _import_highdicom():
    try:
        import highdicom
    except ModuleNotFoundError:
        raise ConfigError(
            "--dicom-sr needs highdicom, which writes structured reports: pip install kmed[dicom]"
        ) from None
    return highdicom
