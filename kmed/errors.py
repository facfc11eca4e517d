"""The errors that kmed raises on purpose; a message says what was received, what is legal and what to do."""

import difflib
import reprlib


class KmedError(Exception):
    """A mistake in what was given to kmed; its message is one line that a user can act on."""

    exit_code = 1


class ConfigError(KmedError):
    """A setting that does not exist, has the wrong type, or contradicts another."""

    exit_code = 2


class DataError(KmedError):
    """Pictures, labels, groups or splits that cannot be used as they are."""


class ModelError(KmedError):
    """An unknown model, or one that cannot be built with these arguments."""


class WeightsError(KmedError):
    """A checkpoint that cannot be found or does not fit the model."""


class ScoreError(KmedError):
    """Predictions that cannot be scored."""


class RunError(KmedError):
    """A run folder that is missing, incomplete, or holds another run."""


def suggest(word: str, legal) -> str:
    """Returns " Did you mean 'x'?" for the legal word nearest to `word`, or "" if none is close.

    Example:
      >>> suggest("resnet19", ["resnet18", "vit"])
      " Did you mean 'resnet18'?"
    """
    near = difflib.get_close_matches(str(word), [str(item) for item in legal], n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxdict = 2, 4, 4, 4
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


def shorten(value) -> str:
    """Returns a value as Python writes it, on one line and in about 60 characters, however large or nested it is.

    Example:
      >>> shorten([1, 2, 3, 4, 5, 6])
      '[1, 2, 3, 4, ...]'
    """
    try:
        text = _SHORT.repr(value)
    except ValueError:  # Python does not write out integers of more than 4,300 digits
        text = "a number of thousands of digits"
    return " ".join(text.split()) if len(text) <= 120 else f"{' '.join(text[:117].split())}..."
