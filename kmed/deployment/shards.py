"""Predicting an archive in parts: which pictures a part has, where its answers go, and how the parts are joined."""

import pathlib
import re
from collections.abc import Sequence

from kmed.data.readers.csv_file import read_csv
from kmed.data.readers.lists import named_paths, read_list
from kmed.errors import ConfigError, DataError
from kmed.files import replacing

_HEADER = b"path,found,"  # how the table of `kmed predict --csv` begins; the other forms have no header


def parse_shard(shard: str) -> tuple[int, int]:
    """Returns (I, N) of a text I/N. Raises ConfigError unless 1 <= I <= N."""
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", str(shard))
    index, number = map(int, match.groups()) if match else (0, 0)
    if not 1 <= index <= number:
        raise ConfigError(f"shard must be I/N, such as 1/8 to 8/8. Received: {shard!r}.")
    return index, number


def take_shard(paths: Sequence[str], shard: str) -> list[str]:
    """Returns part I of N of the pictures: contiguous, so that all parts one after another are the whole."""
    index, number = parse_shard(shard)
    return list(paths[len(paths) * (index - 1) // number : len(paths) * index // number])


def shard_path(out: pathlib.Path, shard: str) -> pathlib.Path:
    """Returns the file for a part's answers, beside `out`: answers-3-of-8.csv for part 3/8 of answers.csv."""
    index, number = parse_shard(shard)
    return out.with_name(f"{out.stem}-{index}-of-{number}{out.suffix}")


def listed_pictures(manifest) -> list[str]:
    """Returns the pictures that a manifest lists: a text file with one path per line, or a CSV with a column `path`.

    Paths are absolute, or relative to the manifest. They are not looked for: one that does not exist is named when it
    is to be predicted, as any picture that cannot be read.

    Raises: DataError: the file cannot be read, or lists nothing.
    """
    file = pathlib.Path(manifest)
    if file.suffix.lower() == ".csv":
        frame = read_csv(file, [])
        if "path" not in frame.columns:
            raise DataError(f"{file} has no column 'path'; it has {', '.join(frame.columns)}.")
        lines = named_paths(file, frame["path"].fillna("").astype(str).tolist())
    else:
        lines = read_list(file)
    return [str(file.parent / line) for line in lines]


def merge_shards(out) -> pathlib.Path:
    """Joins the parts that `kmed predict --shard I/N --out OUT` has written beside `out` to one file, and returns it.

    The file is that of one command without --shard. It is written whole or not at all, and the parts stay.

    Args:
      out: what was given as --out.
    Raises: DataError: there are no parts, one is missing, or they are parts of different numbers or forms.
    Example:
      >>> kmed.merge_shards("archive.csv")
    """
    out = pathlib.Path(out)
    parts = _find_parts(out)
    headers = {path: _header(path) for path in parts}
    if len(set(headers.values())) > 1:
        first, other = parts[0], next(path for path in parts if headers[path] != headers[parts[0]])
        raise DataError(
            f"{first} and {other} have different columns: they are of different runs, or of different forms."
        )
    with replacing(out) as temporary, temporary.open("wb") as file:
        for number, path in enumerate(parts):
            with path.open("rb") as part:
                if number:
                    part.seek(len(headers[path]))
                while block := part.read(1 << 20):
                    file.write(block)
    return out


def _find_parts(out: pathlib.Path) -> list[pathlib.Path]:
    """Returns the N parts of `out`, in order."""
    pattern = re.compile(re.escape(out.stem) + r"-([1-9][0-9]*)-of-([1-9][0-9]*)" + re.escape(out.suffix))
    matches = [match for path in out.parent.glob("*") if (match := pattern.fullmatch(path.name)) and path.is_file()]
    numbers = sorted({int(match[2]) for match in matches})
    if not numbers:
        raise DataError(f"There are no parts of {out}, such as {shard_path(out, '1/8')}. Make them with --shard.")
    if len(numbers) > 1:
        raise DataError(
            f"Beside {out} there are parts of {' and of '.join(map(str, numbers))}. Remove those of an earlier time."
        )
    paths = [shard_path(out, f"{index}/{numbers[0]}") for index in range(1, numbers[0] + 1)]
    if missing := [path for path in paths if not path.exists()]:
        others = f", and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise DataError(f"{missing[0]} is missing{others}. Make it with the same command and its --shard.")
    return paths


def _header(path: pathlib.Path) -> bytes:
    """Returns the first line of a table, or nothing for the other forms."""
    with path.open("rb") as file:
        line = file.readline()
    return line if line.startswith(_HEADER) else b""
