"""Small files that claim or unfold to far more than they hold, and a reader of them that reports its memory.

Run as a script with a folder and a number, it reads every file of the folder as kmed does, with that number as Pillow's
limit of pixels, and prints one line of JSON: what came of each, and the memory that reading took in bytes.
"""

import io
import json
import pathlib
import resource
import struct
import sys
import zipfile
import zlib

import numpy as np
from PIL import Image

from kmed.data.images import Resizing, read_image
from kmed.data.readers.npz_arrays import opened
from kmed.errors import KmedError

NATIVE, DEFLATED = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"
RLE, JPEG, JPEG_LS, JPEG_2000 = (f"1.2.840.10008.1.2.{end}" for end in ("5", "4.50", "4.80", "4.90"))


def make(folder: pathlib.Path, max_pixels: int) -> dict[str, bytes]:
    """Writes the files into a folder and returns {name: content}; some are just below the limit for this setting."""
    million, side = b"\0" * 10**6, int((1.9 * max_pixels) ** 0.5)

    def zeros(count):
        return zlib.compress(bytes(count), 1)

    bombs = {
        "dicom_rle_repeated.dcm": dicom(RLE, 500, 500, rle([b"\x81\0" * 3 * 10**6])),
        "dicom_rle_claims.dcm": dicom(RLE, 65535, 65535, rle([b"\x81\0" * 100])),
        "dicom_rle_overlap.dcm": dicom(RLE, 64, 64, rle([b"\x81\0" * 10**6] * 2), bits=16),
        "dicom_native_claims.dcm": dicom(NATIVE, 65535, 65535, b"\0" * 64),
        "dicom_samples.dcm": dicom(NATIVE, side, side, b"\0" * 64, samples=3, bits=32),
        "dicom_frames.dcm": dicom(NATIVE, 4, 4, b"\0" * 16, NumberOfFrames=2**31 - 1),
        "dicom_rle_frames.dcm": dicom(RLE, 64, 64, rle([b"\x81\0" * 64]), NumberOfFrames=2**31 - 1),
        "dicom_jpeg_size.dcm": dicom(JPEG, 8, 8, jpeg_of(60000, 60000)),
        "dicom_jpeg_ls_size.dcm": dicom(
            JPEG_LS, 8, 8, b"\xff\xd8\xff\xf7\0\x0b\x08" + struct.pack(">HH", 60000, 60000)
        ),
        "dicom_jpeg_2000_size.dcm": dicom(JPEG_2000, 8, 8, jpeg_2000_of(2**31, 2**31)),
        "dicom_deflated.dcm": deflated(bytes(7 * max_pixels)),
        "png_size.png": png(60000, 60000, zlib.compress(million)),
        "png_text.png": png(8, 8, zlib.compress(bytes(9 * 8)), text=zlib.compress(million * 100)),
        "png_profile.png": png(8, 8, zlib.compress(bytes(9 * 8)), profile=zlib.compress(million * 100)),
        "gif_screen.gif": b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\0\0\0;" + b"\0" * 64,
        "gif_frame.gif": b"GIF89a\x08\0\x08\0\0\0\0,\0\0\0\0"
        + struct.pack("<HH", 65535, 65535)
        + b"\0\x02\x02\x4c\x01\0;",
        "bmp_size.bmp": b"BM" + struct.pack("<IIIIiiHHIIiiII", 99, 0, 54, 40, 60000, 60000, 1, 24, 0, 0, 1, 1, 0, 0),
        "tiff_size.tif": tiff(60000, 60000),
        "tiff_frames.tif": frames(500),
        "webp_size.webp": b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<II", 10, 2) + b"\xfe\x3f\0" * 2,
        "jpeg_size.jpg": jpeg_of(60000, 60000),
        "large_grey.png": png(side, side, zeros((side + 1) * side)),
        "large_transparent.png": png(side, side, zeros((4 * side + 1) * side), colour=6),
        "large_16_bits.png": png(side, side, zeros((2 * side + 1) * side), depth=16),
        "large_rle.dcm": dicom(RLE, side, side, rle([b"\x81\0" * (side * side // 128 + 1)] * 2), bits=16),
        "unfolding.npz": npz(200),
    }
    for name, content in bombs.items():
        (folder / name).write_bytes(content)
    return bombs


def dicom(syntax: str, rows: int, columns: int, pixels: bytes, *, bits=8, samples=1, **elements) -> bytes:
    import pydicom

    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.SecondaryCaptureImageStorage, "1.2.3"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = rows, columns, samples
    dataset.PhotometricInterpretation = "MONOCHROME2" if samples == 1 else "RGB"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation, dataset.PlanarConfiguration = 0, 0
    for name, value in elements.items():
        setattr(dataset, name, value)
    compressed = syntax not in (NATIVE, DEFLATED)
    dataset.PixelData = pydicom.encaps.encapsulate([pixels]) if compressed else pixels
    dataset["PixelData"].VR = "OB" if compressed or bits == 8 else "OW"
    dataset["PixelData"].is_undefined_length = compressed
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def deflated(pixels: bytes) -> bytes:
    """Returns a data set whose pixels unfold; it is put together here, since pydicom would hold it three times."""
    content = dicom(DEFLATED, 8, 8, b"\0" * 64)
    meta = 144 + int.from_bytes(content[140:144], "little")
    element = b"\xe0\x7f\x10\0OB\0\0" + struct.pack("<I", len(pixels)) + pixels
    pack = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    return content[:meta] + pack.compress(element) + pack.flush()


def rle(segments: list[bytes]) -> bytes:
    starts = 64 + np.concatenate([[0], np.cumsum([len(segment) for segment in segments])[:-1]]).astype(int)
    header = struct.pack("<16L", len(segments), *starts, *[0] * (15 - len(segments)))
    return header + b"".join(segments)


def jpeg_of(height: int, width: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "JPEG")
    content = file.getvalue()
    place = content.index(b"\xff\xc0") + 5
    return content[:place] + struct.pack(">HH", height, width) + content[place + 4 :]


def jpeg_2000_of(height: int, width: int) -> bytes:
    size = struct.pack(">HIIIIIIIIH", 0, width, height, 0, 0, width, height, 0, 0, 1) + b"\x07\x01\x01"
    return b"\xff\x4f\xff\x51" + struct.pack(">H", 2 + len(size)) + size + b"\0" * 64


def png(height: int, width: int, data: bytes, *, depth=8, colour=0, text=b"", profile=b"") -> bytes:
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))]
    parts += [chunk(b"zTXt", b"a\0\0" + text)] if text else []
    parts += [chunk(b"iCCP", b"a\0\0" + profile)] if profile else []
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IDAT", data), chunk(b"IEND", b"")])


def tiff(height: int, width: int) -> bytes:
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 2**31)]
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + b"".join(
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags
    ) + b"\0" * 4  # fmt: skip


def frames(count: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (64, 64)).save(file, "TIFF", save_all=True, append_images=[Image.new("L", (64, 64))] * count)
    return file.getvalue()


def npz(megabytes: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("train_images.npy", "w") as member:
        shape = (megabytes, 1000, 1000)
        np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for _ in range(megabytes):
            member.write(b"\0" * 10**6)
    return file.getvalue()


def read_all(folder: str) -> dict:
    came = {}
    for path in sorted(pathlib.Path(folder).iterdir()):
        try:
            if path.suffix == ".npz":
                with opened(path) as arrays:
                    arrays.read("train_images")
            else:
                read_image(path, Resizing((32, 40)))
            came[path.name] = "read"
        except KmedError as error:
            came[path.name] = str(error)
        except Exception as error:
            came[path.name] = f"FOREIGN {error!r}"
    return came


if __name__ == "__main__":
    Image.MAX_IMAGE_PIXELS = int(sys.argv[2])
    read_image(png(8, 8, zlib.compress(bytes(72))))  # imports what reading needs
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results = read_all(sys.argv[1])
    print(json.dumps({"came": results, "bytes": 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)}))
