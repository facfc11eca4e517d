"""What a DICOM file claims to hold, checked before anything is decoded: a small file may claim, or unfold to, a lot."""

import contextlib
import io
import os
import pathlib
import struct
import zlib

from kmed.data.limits import admit, max_bytes, too_large
from kmed.errors import DataError

_DEFLATED = "1.2.840.10008.1.2.1.99"
_RLE = "1.2.840.10008.1.2.5"
_CHUNK = 2**20
# Markers of JPEG and JPEG-LS that start a frame: SOF0 to SOF15 and SOF55, without DHT, JPG and DAC.
_START_OF_FRAME = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
_JPEG_2000 = b"\xff\x4f\xff\x51"  # start of the codestream, and the segment with its size


def check_deflated(source: str | os.PathLike | bytes, name: str) -> None:
    """Raises DataError if a deflated data set unfolds to more than the largest picture takes. Nothing is kept."""
    from pydicom.filereader import _read_file_meta_info, read_preamble

    limit = max_bytes()
    with io.BytesIO(source) if isinstance(source, (bytes, bytearray)) else pathlib.Path(source).open("rb") as file:
        read_preamble(file, force=True)
        if limit is None or _read_file_meta_info(file).get("TransferSyntaxUID") != _DEFLATED:
            return
        unfolded, unfold = 0, zlib.decompressobj(-zlib.MAX_WBITS)
        while (chunk := unfold.unconsumed_tail or file.read(_CHUNK)) and not unfold.eof:
            unfolded += len(unfold.decompress(chunk, _CHUNK))
            if unfolded > limit:
                raise too_large(name)


def keep_first_frame(dataset, name: str, held: contextlib.ExitStack) -> None:
    """Checks the size that a data set and its first frame claim, and removes the other frames if they are compressed.

    Args:
      dataset: pydicom's, tidied.
      name: how errors refer to it.
      held: as for `kmed.data.limits.admit`.
    Raises: DataError: the picture is too large, or its frame is of another size.
    """
    from pydicom.encaps import encapsulate, get_frame

    rows, columns, samples = int(dataset.Rows), int(dataset.Columns), int(dataset.SamplesPerPixel)
    sample_bytes = -(-int(dataset.BitsAllocated) // 8)
    admit(name, rows, columns, held, samples * sample_bytes)
    syntax = dataset.file_meta.TransferSyntaxUID
    if not (syntax.is_valid and syntax.is_transfer_syntax and syntax.is_encapsulated):
        return
    number = int(dataset.get("NumberOfFrames") or 1)
    frame = get_frame(dataset.PixelData, 0, number_of_frames=max(number, 1))
    if syntax == _RLE:
        _check_rle(frame, rows * columns, name)
    elif (size := frame_size(frame)) is not None and (size[0] * size[1] > rows * columns or size[2] > max(samples, 4)):
        raise DataError(
            f"{name} has a frame of {size[1]} x {size[0]} pixels, but claims {columns} x {rows}. Repair or remove it."
        )
    dataset.NumberOfFrames, dataset.PixelData = 1, encapsulate([frame])
    for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        if keyword in dataset:
            delattr(dataset, keyword)


def frame_size(frame: bytes) -> tuple[int, int, int] | None:
    """Returns (rows, columns, components) of a JPEG, JPEG-LS or JPEG 2000 frame; None if it does not say."""
    start = frame.find(_JPEG_2000)
    if not frame.startswith(b"\xff\xd8"):
        if start < 0 or len(frame) < start + 42:
            return None
        width, height, left, top = struct.unpack(">4I", frame[start + 8 : start + 24])
        return height - top, width - left, struct.unpack(">H", frame[start + 40 : start + 42])[0]
    place = 2
    while frame[place : place + 1] == b"\xff" and place + 10 <= len(frame):
        if frame[place + 1] in _START_OF_FRAME:
            return (*struct.unpack(">HH", frame[place + 5 : place + 9]), frame[place + 9])
        # 0xFF may be repeated before a marker.
        place += 1 if frame[place + 1] == 0xFF else 2 + int.from_bytes(frame[place + 2 : place + 4], "big")
    return None


def _check_rle(frame: bytes, num_pixels: int, name: str) -> None:
    """Raises DataError if a segment of a run-length encoded frame unfolds to far more bytes than it has pixels."""
    count = min(int.from_bytes(frame[:4], "little"), 15)
    starts = [*struct.unpack(f"<{count}L", frame[4 : 4 + 4 * count]), len(frame)]
    for start, end in zip(starts, starts[1:]):
        if 64 * (end - start) > 2 * num_pixels and _unfolded(frame[start:end], 2 * num_pixels) > 2 * num_pixels:
            raise DataError(
                f"{name} has more compressed pixels than it claims, which is {num_pixels:,}: it is damaged, or an "
                "attack that fills the memory. Repair or remove it."
            )


def _unfolded(segment: bytes, enough: int) -> int:
    """Returns how many bytes a run-length encoded segment holds; stops counting above `enough`."""
    total = place = 0
    while place < len(segment) and total <= enough:
        header = segment[place]
        if header > 128:  # one byte, repeated
            total, place = total + 257 - header, place + 2
        else:
            total, place = total + (header + 1 if header < 128 else 0), place + (header + 2 if header < 128 else 1)
    return total
