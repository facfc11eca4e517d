"""Requests that no client in good faith sends; the service must answer each with a 4xx and go on.

    python scripts/load_test.py hostile saved_models/latest

They are bytes on a socket, since HTTP libraries refuse to send most of them.
"""

import dataclasses
import io
import select
import socket
import struct
import time
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

SECONDS = 60  # in which the service must have answered or closed the connection
PAUSE = 0.1  # between the bytes of a slow client
FORM = {"Content-Type": "multipart/form-data; boundary=edge"}
PNG, JPEG, TIFF, DICOM = (
    {"Content-Type": kind} for kind in ("image/png", "image/jpeg", "image/tiff", "application/dicom")
)
_LINES = (
    "GET /../../etc/passwd",
    "GET /v1/predict/../../../etc/passwd",
    "GET /v1/model/%2e%2e/%2e%2e/etc/passwd",
    "GET //healthz",
    "GET /v1/predict",
    "POST /v1/model",
    "DELETE /v1/model",
    "PATIENT /v1/predict",
)


@dataclasses.dataclass(frozen=True)
class Hostile:
    """One request.

    Attributes:
      name: what is wrong with it.
      content: its bytes.
      drip: a byte that is sent afterwards, again and again, until there is an answer; b"": nothing.
      times: how often it is sent, each time on a new connection.
    """

    name: str
    content: bytes
    drip: bytes = b""
    times: int = 1


def send(address, hostile: Hostile) -> int:
    """Returns the status of the answer to one request; 0 if the connection ended without one.

    Raises: TimeoutError: the service neither answered nor closed the connection.
    """
    with socket.create_connection(address, timeout=SECONDS) as connection:
        try:
            connection.sendall(hostile.content)
            if hostile.drip:
                _drip(connection, hostile.drip)
            received = connection.recv(4096)
        except (BrokenPipeError, ConnectionResetError):  # it answered and closed before everything was sent
            received = _rest(connection)
    return int(received.split()[1]) if received.startswith(b"HTTP/1.1 ") else 0


def _drip(connection: socket.socket, content: bytes) -> None:
    """Sends the same byte again and again until there is an answer."""
    end = time.monotonic() + SECONDS
    while not select.select([connection], [], [], PAUSE)[0]:
        if time.monotonic() > end:
            raise TimeoutError("The service waits for a slow client without end.")
        connection.sendall(content)


def _rest(connection: socket.socket) -> bytes:
    try:
        return connection.recv(4096)
    except ConnectionResetError:
        return b""


def hostile_requests(token: str | None = None, *, max_body: int = 32, max_pictures: int = 16) -> Iterator[Hostile]:
    """Yields the requests.

    Args:
      token: that of the service; with one, there are wrong ones among the requests.
      max_body, max_pictures: the limits of the service.
    """
    head = {} if token is None else {"Authorization": f"Bearer {token}"}
    for name, content, headers in _bodies(max_pictures):
        yield Hostile(name, request(content, head | headers))
    for name, content in _broken_http(head, max_body):
        yield Hostile(name, content)
    for line in _LINES:
        yield Hostile(f"the line {line}", request(b"", head, line))
    if token is not None:
        yield from _wrong_tokens(token)
    start = request(b"", head | PNG)[:-2]
    yield Hostile("slow headers", start[:-20], b"x")
    yield Hostile("headers without an end", start + b"X-More: ", b"x")
    yield Hostile("a slow body", start.replace(b"Content-Length: 0", b"Content-Length: 100000") + b"\r\n", b"x")
    yield Hostile("a connection that says nothing", b"")
    yield Hostile("10,000 empty requests", request(b"", head | PNG), times=10_000)


def request(body: bytes, headers: dict[str, str], line: str = "POST /v1/predict") -> bytes:
    """Returns the bytes of a request."""
    lines = [f"{line} HTTP/1.1", "Host: service", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if not any(name in headers for name in ("Content-Length", "Transfer-Encoding")):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


# ----- bodies that are no pictures, or too much -----


def _bodies(max_pictures: int) -> Iterator[tuple[str, bytes, dict[str, str]]]:
    """Yields (name, body, headers)."""
    png, jpeg, tiff = (picture(format) for format in ("PNG", "JPEG", "TIFF"))
    yield "nothing", b"", PNG
    yield "an empty form", b"--edge--\r\n", FORM
    yield "a form with an empty file", form(b"", "1.png"), FORM
    yield "a truncated PNG file", png[: len(png) // 2], PNG
    yield "a truncated JPEG file", jpeg[:100], JPEG
    yield "a truncated TIFF file", tiff[:20], TIFF
    yield "a truncated DICOM file", dicom(64, 64, bytes(64 * 64))[:400], DICOM
    yield "a truncated form", form(png, "1.png")[:-30], FORM
    yield "a PNG file that claims 3,600 million pixels", png_of(60_000, 60_000, b"\0" * 1000), PNG
    yield "a PNG file that unfolds to 64 million pixels", png_of(8_000, 8_000, bytes(8_001 * 8_000)), PNG
    yield "a JPEG file that claims 3,600 million pixels", resized_jpeg(jpeg, 60_000, 60_000), JPEG
    yield "a TIFF file that claims 3,600 million pixels", tiff_of(60_000, 60_000), TIFF
    yield "a DICOM file that claims 4,295 million pixels", dicom(65_535, 65_535, bytes(64)), DICOM
    yield "a DICOM file whose pixels are missing", dicom(512, 512, bytes(64)), DICOM
    yield "a JPEG file of 10,000 scans", jpeg[:-2] + (b"\xff\xda" + jpeg[-40:-2]) * 10_000 + jpeg[-2:], JPEG
    yield "noise that calls itself PNG", np.random.default_rng(0).bytes(100_000), PNG
    yield "noise behind the first bytes of a PNG file", png[:8] + np.random.default_rng(0).bytes(100_000), PNG
    yield "a GIF file", picture("GIF"), PNG
    yield "PostScript, which would start a program", b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) run\n", PNG
    yield "SVG that names a file", b'<!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>', PNG
    yield "a ZIP archive", b"PK\x03\x04" + bytes(100), {"Content-Type": "application/octet-stream"}
    yield "a pickle", b"cos\nsystem\n(S'true'\ntR.", {"Content-Type": "application/octet-stream"}
    yield "JSON", b'{"path": "/etc/passwd"}', {"Content-Type": "application/json"}
    yield "HTML", b"<script>alert(1)</script>", {"Content-Type": "text/html"}
    yield "a compressed body", zlib.compress(bytes(10**7)), PNG | {"Content-Encoding": "deflate"}
    yield "a file name that is a path", form(png, "../../etc/passwd"), FORM
    yield "a file name from the root", form(png, "/etc/passwd"), FORM
    yield "a file name with a zero byte", form(png, "1.png\0.exe"), FORM
    yield "a file name of 100,000 letters", form(png, "x" * 100_000), FORM
    yield "a field instead of a file", form(b"/etc/passwd", None), FORM
    yield "more pictures than allowed", form(png, "1.png", max_pictures + 1), FORM
    yield "100,000 parts", form(b"x", "1.png", 100_000), FORM
    yield "a boundary of 10,000 letters", png, {"Content-Type": f"multipart/form-data; boundary={'x' * 10_000}"}


def form(content: bytes, name: str | None, times: int = 1) -> bytes:
    """Returns a form with the same file several times."""
    filename = "" if name is None else f'; filename="{name}"'
    part = f'--edge\r\nContent-Disposition: form-data; name="file"{filename}\r\n\r\n'.encode() + content + b"\r\n"
    return part * times + b"--edge--\r\n"


def picture(format: str) -> bytes:
    """Returns a good file of 64 x 64 pixels of noise."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


def png_of(height: int, width: int, pixels: bytes) -> bytes:
    """Returns a grey PNG file with this size in its header."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def resized_jpeg(content: bytes, height: int, width: int) -> bytes:
    """Returns a JPEG file with another size in its header."""
    place = content.index(b"\xff\xc0") + 5
    return content[:place] + struct.pack(">HH", height, width) + content[place + 4 :]


def tiff_of(height: int, width: int) -> bytes:
    """Returns a grey TIFF file with this size in its header, and few pixels."""
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 200), (278, 4, height),
            (279, 4, 64)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return (b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)).ljust(200, b"\0") + bytes(64)


def dicom(rows: int, columns: int, pixels: bytes) -> bytes:
    """Returns a grey DICOM file with this size in its header."""

    def element(group, number, kind, value):
        value += b"\0" * (len(value) % 2)
        size = struct.pack("<2xI" if kind == b"OW" else "<H", len(value))
        return struct.pack("<HH", group, number) + kind + size + value

    meta = element(2, 0x10, b"UI", b"1.2.840.10008.1.2.1")
    numbers = {2: 1, 0x10: rows, 0x11: columns, 0x100: 8, 0x101: 8, 0x102: 7, 0x103: 0}
    parts = [element(0x28, number, b"US", struct.pack("<H", value)) for number, value in numbers.items()]
    parts.insert(1, element(0x28, 4, b"CS", b"MONOCHROME2 "))
    body = b"".join(parts) + element(0x7FE0, 0x10, b"OW", pixels)
    return bytes(128) + b"DICM" + element(2, 0, b"UL", struct.pack("<I", len(meta))) + meta + body


# ----- what is not HTTP, or too much of it -----


def _broken_http(head: dict[str, str], max_body: int) -> Iterator[tuple[str, bytes]]:
    """Yields (name, the bytes of a request)."""
    png = picture("PNG")
    plain = request(png, head | PNG)
    yield "a header of 1 MB", request(png, head | PNG | {"X-Large": "x" * 10**6})
    yield "10,000 headers", request(png, head | PNG | {f"X-{number}": "x" for number in range(10_000)})
    yield "a path of 100,000 letters", request(png, head | PNG, f"POST /{'x' * 100_000}")
    yield "a length of a terabyte", request(png, head | PNG | {"Content-Length": str(10**12)})
    yield "a length above the limit", request(bytes(max_body * 10**6 + 1), head | PNG)
    yield "a length below zero", request(png, head | PNG | {"Content-Length": "-1"})
    yield "a length that is no number", request(png, head | PNG | {"Content-Length": "many"})
    yield "two lengths", plain.replace(b"Content-Length:", b"Content-Length: 5\r\nContent-Length:")
    chunked = head | PNG | {"Transfer-Encoding": "chunked"}
    yield "a chunk whose size is no number", request(b"size\r\nxxxx\r\n0\r\n\r\n", chunked)
    yield "chunks above the limit", request((b"f4240\r\n" + bytes(10**6) + b"\r\n") * (max_body + 1), chunked)
    yield "an unknown transfer encoding", request(png, head | PNG | {"Transfer-Encoding": "gzip, chunked"})
    yield "a header without a colon", plain.replace(b"Host: service", b"Host service")
    yield "a header with a zero byte", plain.replace(b"service", b"serv\0ice")
    yield "no host", plain.replace(b"Host: service\r\n", b"")
    yield "another version of HTTP", plain.replace(b"HTTP/1.1", b"HTTP/9.9")
    yield "the beginning of TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200) + b"\r\n\r\n"
    yield "noise", b"\r\n" + np.random.default_rng(1).bytes(1000) + b"\r\n\r\n"
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "eA==",
        "Sec-WebSocket-Version": "13",
    }
    yield "a web socket", request(b"", head | upgrade, "GET /v1/predict")


def _wrong_tokens(token: str) -> Iterator[Hostile]:
    wrong = {
        "no token": {},
        "an empty token": {"Authorization": ""},
        "a wrong token": {"Authorization": f"Bearer {token[:-1]}"},
        "a token that is too long": {"Authorization": f"Bearer {token}{'x' * 10_000}"},
        "another scheme": {"Authorization": f"Basic {token}"},
        "a token without a scheme": {"Authorization": token},
        "a token in the path": {},
    }
    for name, headers in wrong.items():
        line = f"POST /v1/predict?token={token}" if name == "a token in the path" else "POST /v1/predict"
        yield Hostile(name, request(picture("PNG"), PNG | headers, line))
    right = f"Authorization: Bearer {token}"
    twice = request(picture("PNG"), PNG).replace(b"Host:", f"{right}\r\n{right}\r\nHost:".encode())
    yield Hostile("a token twice", twice)
