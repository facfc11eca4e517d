"""What the name of a folder says: a split, a patient, a kind of patient, a view."""

import re
from collections.abc import Iterable

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "test_simple": "test_simple",
}
_SPLIT_ENDS = re.compile(r"[ _.\-]*(set|data|dataset|images?|imgs?|split|folder|files)$")


def _pattern(words: str, end: str) -> re.Pattern:
    """Returns a pattern of any of the words, separated by "|", and an end, with or without a blank or hyphen."""
    return re.compile(rf"({words})[ _.\-#]*{end}", re.IGNORECASE)


# "patient12", "case-3a", and shorter words that could also be others'.
PATIENT_WORDS = _pattern("patient|pat|subject|subj|sub|case|person|donor|participant|volunteer", r"\d\w*")
PATIENTS = _pattern(
    "patients?|pat|pt|subjects?|subj|sub|cases?|person|donor|participant|volunteer|animal|mouse|p|s", r"\d\w*"
)
# Folders of one patient, by the time or number of the examination.
EXAMINATIONS = _pattern("session|ses|visit|study|series|scan|exam|day|week|month|year|slice|frame|t", r"\d+")
# Numbered classes, such as "grade 3".
KINDS = _pattern("class|grade|stage|type|level|score|category|cat|birads|bi-rads|kl|isup|label", r"\w{1,2}")
# How a picture was taken, not of whom, such as "40X", "left", "MLO" or "part2".
VIEWS = re.compile(
    r"\d+([.,]\d+)?\s?x|x\s?\d+|(mag|magnification|zoom|scale|part|chunk|batch|fold|view|plane|size)[ _.\-]*\d+"
    r"|left|right|l|r|od|os|ap|pa|lateral|frontal|axial|sagittal|coronal|cc|mlo|[lr][ _\-]?(cc|mlo)"
    r"|png|jpe?g|dicom|dcm",
    re.IGNORECASE,
)
# How a set was cut for its download, such as "imgs_part_1".
_PART = re.compile(r"(.*[ _.\-])?(part|chunk|batch)[ _.\-]*\d+", re.IGNORECASE)
_LONG_NUMBER = re.compile(r"\d{4,}")
_SEVERAL, _MANY = 5, 10  # folders that, numbered and each with the same few inside, are patients rather than classes


def split_of(name: str) -> str | None:
    """Returns the split that a name stands for, in any case and also as "train_set" or "Training images", or None."""
    word = name.strip().lower()
    return SPLIT_NAMES.get(word) or SPLIT_NAMES.get(_SPLIT_ENDS.sub("", word))


def are_parts(names: Iterable[str]) -> bool:
    """Returns whether all folders are parts of a set or hold the names of several splits, such as "a. Training Set"."""
    names = list(names)
    words = [set(re.findall(r"[a-z]+", name.lower())) & set(SPLIT_NAMES) for name in names]
    return all_match(_PART, names) or (all(words) and len({SPLIT_NAMES[word] for found in words for word in found}) > 1)


def is_number(name: str) -> bool:
    """Returns whether a folder may be named after a patient: there is a digit, but not that of a kind or a view."""
    return any(map(str.isdigit, name)) and not KINDS.fullmatch(name) and not VIEWS.fullmatch(name)


def all_match(pattern: re.Pattern, names: Iterable[str]) -> bool:
    """Returns whether there are names, and all have the pattern."""
    names = list(names)
    return bool(names) and all(map(pattern.fullmatch, names))


def are_long_numbers(names: Iterable[str]) -> bool:
    """Returns whether there are two names or more, and each has a number of four digits or more."""
    names = list(names)
    return len(names) > 1 and all(map(_LONG_NUMBER.search, names))


def are_patients(names: list[str]) -> bool:
    """Returns whether folders that each hold the same few others are patients: by a word for them, or many numbers."""
    if all_match(PATIENT_WORDS, names):
        return True
    if len(names) >= _SEVERAL and (all_match(PATIENTS, names) or are_long_numbers(names)):
        return True
    return len(names) >= _MANY and sum(map(is_number, names)) >= 0.9 * len(names)
