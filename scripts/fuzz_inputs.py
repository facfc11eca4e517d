"""Reads damaged copies of every kind of input in this process and counts what comes of them.

    python scripts/fuzz_inputs.py --number 3000
    python scripts/fuzz_inputs.py --format dicom --first 1234 --number 1

Each copy has bytes flipped, removed, inserted, repeated or cut off, as its seed says. It must be read, or refused with
one line. Any other exception is printed with its seed, and the exit code is 1.
"""

import collections
import io
import pathlib
import random
import resource
import sys
import tempfile
from collections.abc import Callable

import click
import numpy as np
from PIL import Image

from kmed.config import Config, load_config
from kmed.data.images import Resizing, read_image
from kmed.data.readers.load import load_table
from kmed.errors import KmedError

FINE, LINE, FOREIGN = "read", "one line", "another exception"
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
VALUES = (b"\0", b"\xff", b"\x7f", b"\x80", b"\x01", b"-", b"9", b",", b'"', b"\n")
# Bytes of the digits and words that a number in a text may become.
WORDS = (
    b"nan",
    b"inf",
    b"-1",
    b"99999999999999999999",
    b"null",
    b"[]",
    b"{}",
    b"!!python/name:os.system",
    b"\xef\xbb\xbf",
)


def mutate(content: bytes, seed: int) -> bytes:
    """Returns a copy of the bytes, damaged in one to eight places."""
    draw, damaged = random.Random(seed), bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 3, 8))):
        # Headers are short and matter most.
        place = draw.randrange(min(len(damaged), draw.choice((64, 512, len(damaged) or 1))) or 1)
        length = draw.choice((1, 1, 2, 4, 16))
        match draw.choice(("flip", "flip", "set", "set", "word", "remove", "insert", "repeat", "cut")):
            case "flip" if damaged:
                damaged[place] ^= 1 << draw.randrange(8)
            case "set":
                damaged[place : place + length] = draw.choice(VALUES) * length
            case "word":
                damaged[place : place + length] = draw.choice(WORDS)
            case "remove":
                del damaged[place : place + length]
            case "insert":
                damaged[place:place] = draw.randbytes(length)
            case "repeat":
                damaged[place:place] = damaged[place : place + 8 * length]
            case "cut" if draw.random() < 0.3:
                del damaged[place:]
    return bytes(damaged)


# ----- the inputs: {name: (file name, function that returns the whole file, function that reads a damaged one)} -----


def _picture(kind: str, **options) -> Callable[[], bytes]:
    def make() -> bytes:
        file = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112], exif[0x010F] = 6, "Maker"
        with_exif = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}
        Image.fromarray(PIXELS).save(file, kind, **with_exif, **options)
        return file.getvalue()

    return make


def _deep(kind: str) -> Callable[[], bytes]:
    def make() -> bytes:
        file = io.BytesIO()
        Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 16).save(file, kind)
        return file.getvalue()

    return make


def _dicom(compress: bool, **elements) -> Callable[[], bytes]:
    def make() -> bytes:
        import pydicom

        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.SecondaryCaptureImageStorage, "1.2.3"
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 24, 32, 1
        dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
        for name, value in elements.items():
            setattr(dataset, name, value)
        dataset.PixelData = (PIXELS[..., 0].astype(np.uint16) * 16).tobytes()
        dataset["PixelData"].VR = "OW"
        if compress:
            dataset.compress(pydicom.uid.RLELossless)
        file = io.BytesIO()
        dataset.save_as(file, enforce_file_format=True)
        return file.getvalue()

    return make


def _npz() -> bytes:
    file, pictures = io.BytesIO(), np.stack([PIXELS] * 6)
    numbers = np.arange(6)[:, None] % 2
    np.savez(file, train_images=pictures, train_labels=numbers, val_images=pictures[:2], val_labels=numbers[:2])
    return file.getvalue()


def _csv() -> bytes:
    rows = [f"{number}.png,{'cat' if number % 2 else 'dog'},p{number // 2},{number}.5" for number in range(8)]
    return "\n".join(["path,label,patient_id,age", *rows, ""]).encode()


def _safetensors() -> bytes:
    from safetensors.numpy import save

    return save({"a.weight": np.ones((3, 4), np.float32), "b.bias": np.zeros(4, np.float16)}, {"format": "pt"})


def _read_picture(path: pathlib.Path) -> None:
    read_image(path, Resizing((16, 16), range=(0, 4095)))


def _read_csv(path: pathlib.Path) -> None:
    for number in range(8):
        if not (picture := path.with_name(f"{number}.png")).exists():
            Image.fromarray(PIXELS).save(picture)
    load_table(path)


def _read_weights(path: pathlib.Path) -> None:
    from kmed.models.weight_files import normalization_of
    from kmed.models.weights import read_safetensors

    normalization_of(path, "resnet18")
    read_safetensors(path)


WINDOW = {"WindowCenter": "2000", "WindowWidth": "3000", "RescaleSlope": "1", "RescaleIntercept": "-5"}
INPUTS: dict[str, tuple[str, Callable[[], bytes], Callable[[pathlib.Path], object]]] = {
    "jpeg": ("a.jpg", _picture("JPEG"), _read_picture),
    "png": ("a.png", _picture("PNG"), _read_picture),
    "png 16 bits": ("a.png", _deep("PNG"), _read_picture),
    "tiff": ("a.tif", _picture("TIFF"), _read_picture),
    "tiff lzw": ("a.tif", _picture("TIFF", compression="tiff_lzw"), _read_picture),
    "tiff 16 bits": ("a.tif", _deep("TIFF"), _read_picture),
    "bmp": ("a.bmp", _picture("BMP"), _read_picture),
    "gif": ("a.gif", _picture("GIF"), _read_picture),
    "webp": ("a.webp", _picture("WEBP"), _read_picture),
    "dicom": ("a.dcm", _dicom(False, **WINDOW), _read_picture),
    "dicom rle": ("a.dcm", _dicom(True, PixelPaddingValue=0), _read_picture),
    "npz": ("a.npz", _npz, load_table),
    "csv": ("a.csv", _csv, _read_csv),
    "yaml": ("a.yaml", lambda: Config().dump().encode(), load_config),
    "safetensors": ("a.safetensors", _safetensors, _read_weights),
}


def try_one(name: str, seed: int, folder: pathlib.Path) -> tuple[str, str]:
    """Returns what comes of the damaged copy with this seed (FINE, LINE or FOREIGN), and the message."""
    file_name, make, read = INPUTS[name]
    path = folder / file_name
    path.write_bytes(mutate(make(), seed))
    try:
        read(path)
    except KmedError as error:
        return (LINE if "\n" not in str(error) and str(error) else FOREIGN), str(error)
    except Exception as error:
        return FOREIGN, f"{type(error).__name__}: {error}"
    return FINE, ""


def peak_memory() -> int:
    """Returns the most memory that this process has taken so far, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@click.command(help=__doc__.split("\n")[0])
@click.option("--format", "names", multiple=True, type=click.Choice(list(INPUTS)), help="Default: all of them.")
@click.option("--number", default=200, show_default=True, help="Damaged copies of each format.")
@click.option("--first", default=0, show_default=True, help="Seed of the first copy.")
def main(names, number, first):
    """Prints one line per format, and the seed and message of each exception that is not kmed's own."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in names or INPUTS:
            counts = collections.Counter({FINE: 0, LINE: 0, FOREIGN: 0})
            for seed in range(first, first + number):
                outcome, message = try_one(name, seed, pathlib.Path(folder))
                counts[outcome] += 1
                if outcome == FOREIGN:
                    click.echo(f"  --format '{name}' --first {seed} --number 1: {message}")
            failed += counts[FOREIGN]
            found = ", ".join(f"{count:,} {words}" for words, count in counts.items())
            click.echo(f"{name}: {found}; peak memory {peak_memory() / 1e9:.2f} GB")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
