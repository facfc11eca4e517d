"""Fetches the two public data sets from Kaggle."""

import dataclasses
import pathlib
import shutil

from kmed.errors import DataError, suggest
from kmed.files import replacing
from kmed.progress import say


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set on Kaggle: its handle, download size, licence and what it is."""

    handle: str
    size: str
    licence: str
    about: str


SOURCES = {
    "blood-cells": Source(
        "paultimothymooney/blood-cells",
        "about 110 MB",
        "MIT (the BCCD pictures)",
        "12,515 pictures of four white blood cell types",
    ),
    "nih-sample": Source(
        "nih-chest-xrays/sample",
        "about 4.5 GB",
        "CC0; the NIH Clinical Center asks to be acknowledged",
        "5,606 chest X-rays with up to 14 findings each",
    ),
}


def download_data(name: str, folder) -> pathlib.Path:
    """Returns the folder with the data set, which was fetched into it; whole or not at all.

    Args:
      name: "blood-cells" or "nih-sample".
      folder: a folder that does not exist yet, or is empty.
    Raises: DataError: an unknown name, a folder in use, no network, or Kaggle's refusal.
    """
    if name not in SOURCES:
        raise DataError(f"name must be one of {', '.join(SOURCES)}. Received: name={name!r}." + suggest(name, SOURCES))
    folder = pathlib.Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists already and is left as it is. Choose another folder.")
    source = SOURCES[name]
    say(f"{name}: {source.about}; {source.size}; licence: {source.licence}.")
    say(f"Fetching {source.handle} from Kaggle into {folder} ...")
    with replacing(folder) as temporary:
        temporary.mkdir(parents=True)
        _fetch(source.handle, temporary)
    return folder


def _fetch(handle, folder):
    try:
        import kagglehub
    except ImportError as error:
        raise DataError("Downloading needs kagglehub. Install it with: pip install kagglehub") from error
    try:
        kagglehub.dataset_download(handle, output_dir=str(folder))
    except Exception as error:  # kagglehub raises its own errors, requests' and plain OSErrors alike
        raise DataError(_explain(handle, error)) from error
    shutil.rmtree(folder / ".complete", ignore_errors=True)  # kagglehub's own bookkeeping
    if not any(folder.iterdir()):
        raise DataError(f"Kaggle sent no files for {handle}. Try again, or fetch them by hand: {_page(handle)}")


def _explain(handle, error):
    from requests.exceptions import ConnectionError as NoConnection
    from requests.exceptions import Timeout

    if isinstance(error, (NoConnection, Timeout)):
        return f"Kaggle cannot be reached: there is no network. Fetch the data elsewhere and copy them: {_page(handle)}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"Kaggle wants you to sign in ({status}). Put your token into ~/.kaggle/kaggle.json: {_page(handle)}"
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"Kaggle did not send {handle} ({reason}). Fetch the data by hand: {_page(handle)}"


def _page(handle):
    return f"https://www.kaggle.com/datasets/{handle}"
