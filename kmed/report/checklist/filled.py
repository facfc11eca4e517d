"""checklist.md: both check-lists, answered from the run where it knows, the rest to be filled in by the authors.

What the authors write into the file is kept when it is written again, and stands on the run's page too.
"""

import dataclasses
import html
import pathlib
import re

from kmed.errors import RunError
from kmed.files import write_text
from kmed.labels import printable
from kmed.reading import read_text
from kmed.report.checklist.data_answers import DATA
from kmed.report.checklist.facts import Answer, Facts
from kmed.report.checklist.items import CHECKLISTS, Checklist, Item
from kmed.report.checklist.model_answers import MODEL

ANSWERS = DATA | MODEL
TO_FILL = "To be filled in"
_HEAD = re.compile(r"### (\S+) (\d+[a-z]?) \(")
_RUN, _WHERE = "- From the run: ", "- Where: "
_ABOUT = (
    "Items are named in short words of kmed's own: read what they ask for in the papers. Lines that begin with "
    f'"{_RUN[2:-2]}" and "{_WHERE[2:-2]}" are written again by `kmed report`. Whatever else is written below an item '
    f'is kept, so replace the lines "{TO_FILL}".'
)


@dataclasses.dataclass(frozen=True)
class Filled:
    """An item with what is known of it.

    Attributes:
      item: the item.
      answer: the run's answer; None: it has none.
      own: what the authors wrote; "": nothing yet.
    """

    item: Item
    answer: Answer | None
    own: str

    @property
    def left(self) -> str:
        """What is still to be filled in, as a line; "": nothing."""
        if self.own or (self.answer is not None and not self.item.left):
            return ""
        return f"{TO_FILL}: {self.item.left}." if self.answer is not None else f"{TO_FILL}."

    @property
    def status(self) -> str:
        """One of "from the run", "in part", "by hand" and "to be filled in"."""
        if self.answer is None:
            return "by hand" if self.own else TO_FILL.lower()
        return "in part" if self.left else "from the run"


def write_checklist(facts: Facts) -> list[tuple[Checklist, list[Filled]]]:
    """Writes checklist.md into the run folder, and returns what it says, for the page.

    Raises: RunError: an earlier checklist.md cannot be read, or the folder cannot be written.
    """
    own = read_own(facts.run.checklist)
    filled = [(each, [fill(each, item, facts, own) for item in each.items]) for each in CHECKLISTS]
    write_text(facts.run.checklist, to_markdown(facts.run.folder.resolve().name, filled))
    return filled


def fill(checklist: Checklist, item: Item, facts: Facts, own: dict[tuple[str, str], str]) -> Filled:
    """Returns the item with the run's answer and what the authors wrote."""
    answer = ANSWERS[item.topic](facts) if item.topic else None
    return Filled(item, answer, own.get((checklist.name, item.number), ""))


def read_own(path: pathlib.Path) -> dict[tuple[str, str], str]:
    """Returns {(check-list, number): what the authors wrote below the item} of a checklist.md, if there is one."""
    if not path.exists():
        return {}
    text = read_text(path, lambda message: RunError(f"The check-list {message}"))
    lines: dict[tuple[str, str], list[str]] = {}
    titles = {f"## {checklist.title}" for checklist in CHECKLISTS}
    current: list[str] | None = None
    for line in text.splitlines():
        if found := _HEAD.match(line):
            current = lines.setdefault((found[1], found[2]), [])
        elif line in titles:
            current = None
        elif current is not None and not line.startswith((_RUN, _WHERE, TO_FILL)):
            current.append(line)
    return {key: written for key, part in lines.items() if (written := "\n".join(part).strip())}


def count_status(filled: list[Filled]) -> str:
    """Returns how many items have each status, such as "20 from the run, 12 in part, 12 to be filled in"."""
    names = ("from the run", "in part", "by hand", TO_FILL.lower())
    counts = {name: sum(each.status == name for each in filled) for name in names}
    return ", ".join(f"{number} {name}" for name, number in counts.items() if number)


def to_markdown(name: str, filled: list[tuple[Checklist, list[Filled]]]) -> str:
    """Returns the check-lists of the run `name` as Markdown."""
    lines = [f"# Check-lists of the run {_plain(name)}", "", _ABOUT]
    for checklist, items in filled:
        lines += ["", f"## {checklist.title}", "", f"{checklist.paper}.", "", f"{count_status(items)}."]
        for each in items:
            item = each.item
            lines += ["", f"### {checklist.name} {item.number} ({item.section}): {item.text}", ""]
            if each.answer is not None:
                lines.append(_RUN + _plain("".join(map(str, each.answer.text))))
                lines.append(_WHERE + ", ".join(f"`{place}`" for place in each.answer.where))
            rest = [part for part in (each.left, each.own) if part]
            lines += ["", *rest] if each.answer is not None and rest else rest
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Returns text on one line, without what Markdown would take for HTML."""
    return html.escape(printable(text), quote=False)
