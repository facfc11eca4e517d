"""From the body of a request to the pictures in it, in memory: nothing is written to disk."""

import asyncio
import dataclasses
import unicodedata

import python_multipart
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from kmed.data.dicom import is_dicom
from kmed.deployment.service.limits import Held, Limits, Refusal, too_large
from kmed.errors import DataError

FORM = "multipart/form-data"
# Of a body that is one picture. What it really holds is read from its first bytes.
RAW = ("image/jpeg", "image/png", "image/tiff", "application/dicom", "application/octet-stream")
RAW_NAME = "picture"
LONGEST_NAME = 255
_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Decoding takes time for each scan of a progressive JPEG file, even for one of a few bytes. Encoders write about ten.
_SCAN, MOST_SCANS = b"\xff\xda", 100


@dataclasses.dataclass(frozen=True)
class Upload:
    """One picture of a request.

    Attributes:
      name: the client's name for it.
      content: the bytes of the file.
    """

    name: str
    content: bytes


async def read_body(request: Request, limits: Limits, held: Held) -> bytes:
    """Returns the body of a request.

    Raises: Refusal: it is too large (413), takes too long (408), is compressed (415), or there is no room (429).
    """
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refusal(415, "encoding", "The body must not be compressed: send it without Content-Encoding.")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limits.body_bytes:
        raise too_large(limits)
    parts = []
    try:
        async with asyncio.timeout(limits.timeout):
            async for chunk in request.stream():
                held.grow(len(chunk))
                parts.append(chunk)
    except TimeoutError:
        raise Refusal(
            408, "slow", f"The request was not complete after {limits.timeout:g} seconds.", {"Connection": "close"}
        ) from None
    except ClientDisconnect:
        raise Refusal(400, "disconnect", "The connection ended before the request did.") from None
    return b"".join(parts)


def is_form(content_type: str) -> bool:
    """Returns whether a header Content-Type names a form."""
    return content_type.lstrip().lower().startswith(FORM)


def split_body(content_type: str, body: bytes, limits: Limits) -> list[Upload]:
    """Returns the pictures in a body, at least one.

    Args:
      content_type: the header of the request.
      body: a form with files, or one picture.
      limits: how many pictures there may be.
    Raises: Refusal: the body is of another type (415), has too many pictures (413), or is not what it claims (400).
    """
    media, options = parse_options_header(content_type)
    kind = media.decode("latin-1").lower()
    if kind == FORM:
        uploads = _parse_form(options.get(b"boundary", b""), body, limits)
    elif kind in RAW:
        uploads = [Upload(RAW_NAME, body)]
    else:
        raise Refusal(415, "type", f"The Content-Type must be {FORM}, {', '.join(RAW[:-1])} or {RAW[-1]}.")
    if not uploads or not all(upload.content for upload in uploads):
        raise Refusal(400, "empty", "The request holds no picture, or an empty file. Send JPEG, PNG, TIFF or DICOM.")
    return uploads


def check_kind(content: bytes) -> None:
    """Raises DataError unless bytes begin as one of the formats that the service reads.

    kmed reads more formats from files; a service that strangers reach leaves their decoders alone.
    """
    if not content.startswith(_STARTS) and not is_dicom(content):
        raise DataError("It is not a JPEG, PNG, TIFF or DICOM file. Convert it.")
    if (scans := content.count(_SCAN)) > MOST_SCANS:
        raise DataError(
            f"It has {scans} scans, and {MOST_SCANS} are decoded at most: it may be an attack that takes all the time. "
            "Store it anew."
        )


class _Form:
    """Collects the files of a form while python-multipart parses it."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.uploads: list[Upload] = []
        self.complete = False
        self._headers: dict[bytes, bytes] = {}
        self._field = self._value = b""
        self._name: str = ""
        self._content = bytearray()

    def callbacks(self) -> dict:
        """Returns what the parser calls."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._on_field,
            "on_header_value": self._on_value,
            "on_header_end": self._on_header,
            "on_headers_finished": self._on_headers,
            "on_part_data": self._on_data,
            "on_part_end": self._finish,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.uploads) >= self.limits.max_pictures:
            raise Refusal(413, "pictures", f"A request may have {self.limits.max_pictures} pictures. Send several.")
        self._headers, self._content = {}, bytearray()

    def _on_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field = self._value = b""

    def _on_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if b"filename" not in options:
            raise Refusal(400, "form", "Each part of the form must be a file, with a filename.")
        self._name = _checked_name(options[b"filename"])

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        self._content += data[start:end]

    def _finish(self) -> None:
        self.uploads.append(Upload(self._name, bytes(self._content)))

    def _end(self) -> None:
        self.complete = True


def _parse_form(boundary: bytes, body: bytes, limits: Limits) -> list[Upload]:
    if not boundary:
        raise Refusal(400, "form", f"The Content-Type {FORM} names no boundary.")
    form = _Form(limits)
    try:
        parser = python_multipart.MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise Refusal(400, "form", "The body is not a form with this boundary.") from None
    if not form.complete:
        raise Refusal(400, "form", "The form breaks off before its end.")
    return form.uploads


def _checked_name(filename: bytes) -> str:
    """Returns the name of a file, which is repeated in the answer and used for nothing else.

    Raises: Refusal: it is a path, is too long, or holds control characters.
    """
    try:
        name = filename.decode()
    except UnicodeDecodeError:
        name = filename.decode("latin-1")
    is_path = name in (".", "..") or "/" in name or "\\" in name
    if is_path or len(name) > LONGEST_NAME or any(unicodedata.category(letter)[0] == "C" for letter in name):
        raise Refusal(
            400, "name", f"The filename must be a plain name of up to {LONGEST_NAME} letters, without a folder."
        )
    return name or RAW_NAME
