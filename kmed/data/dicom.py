"""Reads DICOM files with pydicom."""

import contextlib
import io
import os
import pathlib
import re

import numpy as np

from kmed.data.dicom_frames import check_deflated, keep_first_frame
from kmed.data.dicom_values import shown, tidy
from kmed.errors import ConfigError, DataError

SUFFIXES = frozenset({".dcm", ".dicom"})
_MAGIC_AT, _MAGIC = 128, b"DICM"
# Of a data set without a preamble: the groups, elements and value representations with which it may begin.
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00")
_FIRST_VRS = (b"UL", b"CS", b"UI", b"DA", b"SH", b"LO", b"TM", b"OB", b"DT")
_FIRST_ELEMENTS = (b"\x00\x00", b"\x01\x00", b"\x05\x00", b"\x08\x00", b"\x12\x00", b"\x16\x00", b"\x18\x00")
_OTHER_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")  # JPEG, PNG, GIF, ...


def is_dicom(source: str | os.PathLike | bytes) -> bool:
    """Returns whether a file, or its bytes, are DICOM.

    The first bytes decide: "DICM" at byte 128, or a first element of group 2 or 8, as in old files without a preamble.
    A suffix of DICOM decides only if they are those of no other kind of picture. A file that cannot be opened, or that
    does not exist, is judged by its suffix alone.
    """
    if isinstance(source, (bytes, bytearray)):
        return _starts_as_dicom(bytes(source[: _MAGIC_AT + 4]))
    path, start = pathlib.Path(source), b""
    if path.is_file():
        with contextlib.suppress(OSError), path.open("rb") as file:
            start = file.read(_MAGIC_AT + 4)
    if _starts_as_dicom(start):
        return True
    return path.suffix.lower() in SUFFIXES and not start.startswith(_OTHER_STARTS)


def _starts_as_dicom(start: bytes) -> bool:
    if start[_MAGIC_AT:] == _MAGIC:
        return True
    if start[:2] not in _FIRST_GROUPS or start[2:4] not in _FIRST_ELEMENTS or len(start) < 12:
        return False
    length = int.from_bytes(start[4:8], "little")  # of the first value, if the representations are implicit
    return start[4:6] in _FIRST_VRS or (0 < length <= 64 and length % 2 == 0)


def read_dicom(source: str | os.PathLike | bytes, name: str, held: contextlib.ExitStack | None = None) -> np.ndarray:
    """Returns the picture of a DICOM file as a viewer shows it, uint8 (H, W) or (H, W, 3).

    Grey pictures: the modality LUT or the rescale slope and intercept are applied, then the first VOI LUT or usable
    window of the file (linear, linear exact or sigmoid). If there is none, or none that can be used (a width of 0, an
    unknown function), the range of this picture's pixels without padding is shown. MONOCHROME1, in which low values
    are bright, is inverted. Padding is black. Colour pictures: RGB, YBR and palettes become RGB. If there are several
    frames, the first is read, with the rescale and window of its functional groups. Pixels that are not square are
    left unchanged.

    Args:
      source: a file's path, or its bytes.
      name: how error messages refer to it.
      held: as for `kmed.data.limits.admit`; None: until the pixels have been decoded.
    Raises: DataError: the file is damaged or too large, has no pixels, or is compressed in a way that cannot be read
      here. ConfigError: pydicom is not installed.
    """
    try:
        import pydicom
    except ModuleNotFoundError:
        raise ConfigError(f"{name} is a DICOM file, which pydicom reads: pip install kmed[dicom]") from None
    # Its warnings quote unusual values, which may be a patient's name in a damaged file.
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    try:
        with contextlib.ExitStack() as own:
            check_deflated(source, name)
            # force: a file may lack the preamble, as in old archives; its suffix then says that it is DICOM.
            content = io.BytesIO(source) if isinstance(source, (bytes, bytearray)) else source
            dataset = pydicom.dcmread(content, force=True)
            if "PixelData" not in dataset:
                raise DataError(f"{name} holds no pixels: it is not a picture, or not a DICOM file. Remove it.")
            if "TransferSyntaxUID" not in dataset.file_meta:
                dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
            tidy(dataset)
            keep_first_frame(dataset, name, own if held is None else held)
            return shown(dataset, _decode(dataset, name), name)
    except (DataError, FileNotFoundError):
        raise
    except Exception as error:  # pydicom raises whatever error the damage leads to
        raise DataError(
            f"{name} cannot be read as DICOM: {_reason(str(error) or type(error).__name__)}. Repair or remove the file."
        ) from error


def _decode(dataset, name: str) -> np.ndarray:
    """Returns the stored values of the first frame. Raises DataError if no installed decoder reads them."""
    from pydicom.pixels import get_decoder, pixel_array

    syntax = dataset.file_meta.TransferSyntaxUID
    stored_as = f"{name} is stored as {syntax.name if syntax.is_valid else 'an unknown transfer syntax'}"
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        raise DataError(f"{stored_as}, which pydicom does not read. Convert it to images.") from None
    if not available:
        raise DataError(
            f"{stored_as}, which no installed decoder reads: pip install pylibjpeg[all], or store it uncompressed."
        )
    try:
        return pixel_array(dataset, index=0)
    except RuntimeError as error:  # every installed decoder failed: the file is damaged, or they lack a feature
        reason = " ".join(_reason(line) for line in str(error).splitlines())
        raise DataError(
            f"{stored_as} and cannot be decoded: {reason}. If other programs can show it, pip install pylibjpeg[all]; "
            "otherwise repair or remove it."
        ) from error


def _reason(text: str) -> str:
    """Returns the first line of an error's text, without the element's value that Python quotes at its end."""
    first = text.strip().splitlines()[0].strip() if text.strip() else "an error without a message"
    return re.sub(r"<\S+ object at 0x\w+>", "it", first).split(": '")[0].split(": b'")[0]
