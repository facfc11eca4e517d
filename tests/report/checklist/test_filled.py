"""The check-lists: each answer stands in a file of the run, and what the authors write is kept."""

import json
import pathlib
import re
import shutil

import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from drawn_runs import make_run

import kmed
from kmed.cli.main import main
from kmed.errors import RunError
from kmed.report.checklist.filled import ANSWERS, read_own
from kmed.report.checklist.items import CHECKLISTS, CLAIM, TRIPOD
from kmed.runs import Run

EARLIER = pathlib.Path(__file__).parents[2] / "fixtures" / "runs_0_1_0"
TRIPOD_NUMBERS = (
    "1 2 3a 3b 3c 4 5a 5b 6a 6b 6c 7 8a 8b 8c 9a 9b 9c 10 11 12a 12b 12c 12d 12e 12f 12g 13 14 15 16 17 18a 18b 18c "
    "18d 18e 18f 19 20a 20b 20c 21 22 23a 23b 24 25 26 27a 27b 27c"
)


def draw(folder, task="multiclass", **options) -> Run:
    """Returns a drawn run whose pictures are gone, with a splits.csv of its predictions."""
    made = make_run(folder, task, settings=("data.path=/nonexistent",), **options)
    columns = ["path", "group", "cluster", "split"]
    pd.read_csv(made.predictions, dtype=str)[columns].to_csv(made.splits, index=False)
    return made


@pytest.fixture(scope="module", params=["multiclass", "multilabel", "drawn", "short"])
def run(request, tmp_path_factory) -> Run:
    """A run whose page has the check-lists: two of an earlier version, one drawn, and one just trained."""
    folder = tmp_path_factory.mktemp("checked") / request.param
    if request.param == "drawn":
        made = draw(folder, "multilabel")
    elif request.param == "short":
        made = Run(shutil.copytree(request.getfixturevalue("short_run").folder, folder))
    else:
        made = Run(shutil.copytree(EARLIER / request.param, folder))
    kmed.write_report(made.folder, checklist=True)
    return made


def read_items(run) -> dict:
    """Returns {"CLAIM 7": the lines below the item} of checklist.md."""
    parts = re.split(r"^### (\S+ \w+) \(.*$", run.checklist.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {
        name: text.split("\n## ")[0].strip().splitlines() for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def stands(run, place: str) -> bool:
    """Returns whether there is such a place in the run folder."""
    file, _, part = place.partition("#")
    path = run.folder / file
    if not path.exists():
        return False
    if path.suffix in (".json", ".yaml") and part:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for step in part.removeprefix("/").split("/"):
            if step not in content:
                return False
            content = content[step]
        return True
    if path.suffix == ".csv" and part:
        return part in pd.read_csv(path, nrows=1).columns
    if path.suffix == ".html":
        return f'id="{part}"' in path.read_text(encoding="utf-8")
    return not part


def test_items_have_the_numbers_of_the_papers():
    assert [item.number for item in CLAIM.items] == [str(number) for number in range(1, 45)]
    assert [item.number for item in TRIPOD.items] == TRIPOD_NUMBERS.split()
    for checklist in CHECKLISTS:
        assert len({item.text for item in checklist.items}) >= len(checklist.items) - 1
        assert all(item.topic or not item.left for item in checklist.items)


def test_every_topic_has_an_answer_and_every_answer_a_topic():
    assert {item.topic for checklist in CHECKLISTS for item in checklist.items} - {""} == set(ANSWERS)


def test_each_answer_points_to_what_the_run_holds(run):
    answered = 0
    for name, lines in read_items(run).items():
        says = [line for line in lines if line.startswith("- From the run: ")]
        where = [line for line in lines if line.startswith("- Where: ")]
        assert len(says) == len(where) <= 1
        if says:
            answered += 1
            places = re.findall(r"`([^`]+)`", where[0])
            assert places, name
            assert [place for place in places if not stands(run, place)] == [], name
        else:
            assert lines[0].startswith("To be filled in"), name
    assert answered >= 45


def test_a_place_that_does_not_exist_is_noticed(run):
    for place in ("config.yaml#/train/nothing", "metrics.json#/none", "result.csv#none", "report.html#none", "a.png"):
        assert not stands(run, place)


def test_answers_are_those_of_the_files(run):
    items, metrics = read_items(run), json.loads(run.metrics.read_text())
    config, result = run.read_config(), run.read_result()
    assert f"{metrics['training']['num_images']:,} images" in items["CLAIM 21"][0]
    assert f"{metrics['test']['num_images']:,} images of the test split" in items["TRIPOD+AI 10"][0]
    assert f"loss {config.train.loss}, batches of {config.train.batch_size}" in items["CLAIM 25"][0]
    assert f"{int(result['parameters']):,} trainable" in items["CLAIM 22"][0]
    name = "accuracy" if config.task == "multiclass" else "exact_match_ratio"
    score = metrics["test"]["scores"][name]
    expected = f"{score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})"
    assert expected in items["CLAIM 32"][0] and expected in items["TRIPOD+AI 23a"][0]
    for label, counts in metrics["test"]["counts"].items():
        assert f"{label} {counts['positives']:,}" in items["TRIPOD+AI 21"][0]
        share = counts["positives"] / counts["known"]
        assert f"and {share:.1%}" in items["TRIPOD+AI 16"][0]


def test_the_page_shows_what_the_file_says(run):
    page = run.report.read_text(encoding="utf-8")
    assert '<a href="#checklists">' in page and page.count('class="checklist"') == 2
    rows = page.count('<tr class="from-the-run">') + page.count('<tr class="in-part">')
    items = read_items(run)
    assert rows == sum(lines[0].startswith("- From") for lines in items.values())
    assert page.count('<tr class="to-be-filled-in">') == len(items) - rows


def test_what_is_not_known_is_not_claimed(run):
    items = read_items(run)
    for name in ("CLAIM 11", "CLAIM 33", "CLAIM 44", "TRIPOD+AI 14", "TRIPOD+AI 17", "TRIPOD+AI 24"):
        assert items[name] == ["To be filled in."]
    assert items["CLAIM 7"][-1].startswith("To be filled in: who collected them")
    if not json.loads(run.metrics.read_text())["test"]["subgroups"]:
        assert items["CLAIM 36"] == ["To be filled in."]


@pytest.fixture
def drawn(tmp_path) -> Run:
    made = draw(tmp_path / "run")
    kmed.write_report(made.folder, checklist=True)
    return made


def replace_line(run, item, line, written) -> None:
    """Writes into checklist.md below an item, as its authors would."""
    text = run.checklist.read_text(encoding="utf-8")
    start = text.index(f"### {item} (")
    at = text.index(line, start)
    run.checklist.write_text(text[:at] + written + text[at + len(line) :], encoding="utf-8")


def test_what_the_authors_write_is_kept_and_shown(drawn):
    own = "Funded by nobody.\n\n#### Details\n\n- <b>none</b> | ## none"
    replace_line(drawn, "CLAIM 44", "To be filled in.", own)
    replace_line(drawn, "CLAIM 7", "To be filled in: who collected them, and where others get them.", "Two clinics.")
    replace_line(drawn, "TRIPOD+AI 27c", "To be filled in.", "Älter werden.")
    for _ in range(2):
        kmed.write_report(drawn.folder)  # a run that has a checklist.md keeps it up to date
        assert read_own(drawn.checklist) == {
            ("CLAIM", "44"): own, ("CLAIM", "7"): "Two clinics.", ("TRIPOD+AI", "27c"): "Älter werden."
        }  # fmt: skip
    page, items = drawn.report.read_text(encoding="utf-8"), read_items(drawn)
    assert "Funded by nobody." in page and "&lt;b&gt;none&lt;/b&gt;" in page and "<b>none</b>" not in page
    assert items["CLAIM 7"][0].startswith("- From the run: ") and items["CLAIM 7"][-1] == "Two clinics."
    assert page.count('<tr class="by-hand">') == 2
    assert "2 by hand" not in drawn.checklist.read_text()  # one in each list
    assert drawn.checklist.read_text().count("1 by hand") == 2


def test_names_of_classes_stay_text(tmp_path):
    hostile = ("<script>x</script>", "a`b|c", "two\nlines")
    made = draw(tmp_path / "run", names=hostile)
    kmed.write_report(made.folder, checklist=True)
    text = made.checklist.read_text(encoding="utf-8")
    assert "<script>" not in text and "&lt;script&gt;" in text and "two\nlines" not in text
    assert "<script>" not in made.report.read_text(encoding="utf-8")


def test_other_data_that_were_scored_are_named(drawn):
    (drawn.folder / "external" / "clinic_b").mkdir(parents=True)
    (drawn.folder / "external" / "clinic_b" / "metrics.json").write_text("{}")
    kmed.write_report(drawn.folder)
    lines = read_items(drawn)["CLAIM 33"]
    assert "clinic_b" in lines[0] and lines[1] == "- Where: `external/clinic_b/metrics.json`"


def test_without_the_flag_there_are_no_checklists(tmp_path):
    made = draw(tmp_path / "run")
    kmed.write_report(made.folder)
    assert not made.checklist.exists() and "checklist" not in made.report.read_text().split("</style>")[1]


def test_the_command_says_where_the_file_is(tmp_path):
    made = draw(tmp_path / "run")
    result = CliRunner().invoke(main, ["--quiet", "report", str(made.folder), "--checklist"])
    assert result.exit_code == 0, result.output
    assert f"Check-lists: {made.checklist}" in result.output


def test_a_damaged_file_is_one_line_and_stays(drawn):
    drawn.checklist.write_bytes(b"### CLAIM 44 (x): y\n\xff\xfe\x00")
    with pytest.raises(RunError, match=r"The check-list .*checklist.md"):
        kmed.write_report(drawn.folder)
    assert drawn.checklist.read_bytes().endswith(b"\xff\xfe\x00")
