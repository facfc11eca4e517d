"""Text as people mean it: blanks and characters that nobody sees do not count, and spellings of one class are one."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

# Zero-width characters, marks of direction, the soft hyphen and the byte-order mark: nothing of them is seen.
INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u061c\u180e\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"))

WHOLE = re.compile(r"^(-?\d+)\.0+$")  # a whole number, as a table of decimal numbers writes it


def plain(text: str) -> str:
    """Returns the text without invisible characters and outer blanks, inner blanks as one space each, in NFC.

    Non-breaking spaces, tabs and line breaks are blanks too.

    Example:
      >>> plain("\\ufeff P\\u00a0 1 ")
      'P 1'
    """
    if text.isascii() and " " not in text and text.isprintable():  # most cells of most files
        return text
    return unicodedata.normalize("NFC", " ".join(text.translate(INVISIBLE).split()))


def spelling_key(text: str) -> str:
    """Returns what two spellings of one name share: lower case, no blanks, no full stop at the end, 1 for 1.0.

    Example:
      >>> spelling_key("No Finding ") == spelling_key("no finding")
      True
    """
    key = plain(text).replace(" ", "").casefold()
    return WHOLE.sub(r"\1", key).rstrip(".") or key


def spelt_as(texts: Iterable[str], known: Iterable[str]) -> list[str]:
    """Returns each text as `known` spells it: as it is if it is there, else as the text that is plainly the same."""
    exact = set(known)
    spelling = {plain(text): text for text in exact}
    return [text if text in exact else spelling.get(plain(text), text) for text in texts]


def unite_spellings(
    names: Iterable[str], class_names: Sequence[str] | None = None
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Returns ({name as written: class}, notes): names of one `spelling_key` are one class.

    The class is spelt as in `class_names`, else as most of `names` spell it. A spelling that `class_names` lists
    stands for itself, so that a list of both `a` and `A` keeps them apart. A name that is not in `class_names` keeps
    its own spelling.

    Args:
      names: the names as written, one per image (in any number; they are counted).
      class_names: the legal classes; None: those that are found.
    Example:
      >>> unite_spellings(["Benign", "benign ", "Benign"])[0]
      {'Benign': 'Benign', 'benign ': 'Benign'}
    """
    counts = Counter(names)
    legal = None if class_names is None else [plain(name) for name in class_names]
    spellings: Counter[str] = Counter()
    for name, count in counts.items():
        spellings[plain(name)] += count
    chosen: dict[str, str] = {}
    for spelling in legal or sorted(spellings, key=lambda name: (-spellings[name], name)):
        chosen.setdefault(spelling_key(spelling), spelling)
    known = set(legal or ())
    united = {
        name: plain(name) if plain(name) in known else chosen.get(spelling_key(name), plain(name)) for name in counts
    }
    changed = sorted({(plain(name), new) for name, new in united.items() if plain(name) != new})
    return united, _note(changed)


def _note(changed):
    if not changed:
        return ()
    listed = ", ".join(f"{old!r} is read as {new!r}" for old, new in changed[:3]) + (", ..." if changed[3:] else "")
    return (
        f"Names that differ only in case, blanks, a full stop at the end or .0 are one class: {listed}. To keep them "
        "apart, list each spelling in class_names.",
    )
