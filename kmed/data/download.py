"""Downloads the two public data sets from Kaggle."""

import dataclasses
import pathlib
import shutil

from kmed.errors import DataError, suggest
from kmed.files import is_vacant, replacing
from kmed.progress import say


@dataclasses.dataclass(frozen=True)
class KaggleSource:
    """A data set on Kaggle: its handle, download size, licence and what it is."""

    handle: str
    size: str
    licence: str
    about: str


SOURCES = {
    "blood-cells": KaggleSource(
        "paultimothymooney/blood-cells",
        "about 110 MB",
        "MIT (the BCCD pictures)",
        "12,515 pictures of four white blood cell types",
    ),
    "nih-sample": KaggleSource(
        "nih-chest-xrays/sample",
        "about 4.5 GB",
        "CC0; the NIH Clinical Center asks to be acknowledged",
        "5,606 chest X-rays with up to 14 findings each",
    ),
}


def download_data(name: str, folder) -> pathlib.Path:
    """Downloads a data set into a folder, whole or not at all, and returns the folder.

    Args:
      name: "blood-cells" or "nih-sample".
      folder: a folder that does not exist yet, or is empty.
    Raises: DataError: the name is unknown, the folder is in use, there is no network, or Kaggle refuses.
    """
    if name not in SOURCES:
        raise DataError(f"name must be one of {', '.join(SOURCES)}. Received: name={name!r}." + suggest(name, SOURCES))
    folder = pathlib.Path(folder).expanduser()
    if not is_vacant(folder):
        raise DataError(f"{folder} already exists and was left unchanged. Choose another folder.")
    source = SOURCES[name]
    say(f"{name}: {source.about}; {source.size}; licence: {source.licence}.")
    say(f"Downloading {source.handle} from Kaggle into {folder} ...")
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
    except Exception as error:  # kagglehub raises its own errors, those of requests and plain OSErrors
        raise DataError(_explain(handle, error)) from error
    shutil.rmtree(folder / ".complete", ignore_errors=True)  # kagglehub's own bookkeeping
    if not any(folder.iterdir()):
        raise DataError(f"Kaggle sent no files for {handle}. Try again, or download them by hand: {_page(handle)}")


def _explain(handle, error):
    from requests.exceptions import ConnectionError as NoConnection
    from requests.exceptions import Timeout

    if isinstance(error, (NoConnection, Timeout)):
        return (
            f"Kaggle cannot be reached: there is no network. Download the data elsewhere and copy them: {_page(handle)}"
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"Kaggle requires you to sign in ({status}). Put your token into ~/.kaggle/kaggle.json: {_page(handle)}"
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"Kaggle did not send {handle} ({reason}). Download the data by hand: {_page(handle)}"


def _page(handle):
    return f"https://www.kaggle.com/datasets/{handle}"
