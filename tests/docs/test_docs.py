"""The documentation: it builds without a warning and without a network, and what is generated is up to date."""

import pathlib
import re
import shutil
import subprocess
import sys

import click
import pytest
import yaml
from click.testing import CliRunner

import kmed
from kmed.cli.main import main
from kmed.config import setting_names

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(page for page in PAGES if page.name != "cli-reference.md")]
WIDTH = 120


def build(folder, site):
    """Builds the site of the project in `folder` as a reader would; returns the finished process."""
    pytest.importorskip("mkdocs", reason='mkdocs is not installed: pip install -e ".[docs]"')
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    result = build(ROOT, folder)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def test_every_page_is_built_and_listed(site):
    listed = set(re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert {page.name for page in PAGES} <= listed
    for name in listed:
        page = site / "index.html" if name == "index.md" else site / name.removesuffix(".md") / "index.html"
        assert page.is_file(), name


def test_no_page_loads_anything_from_another_host(site):
    loading = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)")
    for page in site.rglob("*.html"):
        assert loading.findall(page.read_text(encoding="utf-8")) == [], page


def test_tables_that_pages_link_to_lie_beside_them(site):
    assert (site / "results" / "blood_cells.csv").read_bytes() == (ROOT / "results/blood_cells.csv").read_bytes()
    assert (site / "configs" / "nih_cxr.yaml").is_file()


def test_the_reference_shows_parameters_errors_and_examples(site):
    text = (site / "python-api" / "index.html").read_text(encoding="utf-8")
    section = text.split('id="kmed.evaluate"')[1].split('id="kmed.compare"')[0]
    for part in ("Parameters:", "Returns:", "Raises:", "Examples:", "RunError", "run_folder"):
        assert part in section, part


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[gone](gone.md)", "gone.md"),
        ("[gone](../results/gone.csv)", "gone.csv"),
        ("[gone](data.md#gone)", "gone"),
        ("::: kmed.gone", "kmed.gone"),
    ],
    ids=["page", "table", "heading", "function"],
)
def test_a_broken_link_fails(tmp_path, text, message):
    shutil.copytree(DOCS, tmp_path / "docs")
    for name in ("mkdocs.yml", "CONTRIBUTING.md", "CHANGELOG.md", "NOTICE", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for name in ("kmed", "configs", "results"):
        (tmp_path / name).symlink_to(ROOT / name)
    with (tmp_path / "docs" / "data.md").open("a", encoding="utf-8") as page:
        page.write(f"\n{text}\n")
    result = build(tmp_path, tmp_path / "site")
    assert result.returncode != 0 and message in result.stdout + result.stderr


@pytest.mark.parametrize("name", ["write_cli_reference", "write_weights_table"])
def test_what_is_written_by_a_script_is_up_to_date(name, script):
    result = CliRunner().invoke(script(name).main, ["--check"])
    assert result.exit_code == 0, result.output


def test_an_old_table_of_weights_is_named_and_only_the_table_is_rewritten(script, tmp_path, monkeypatch):
    writer = script("write_weights_table")
    page = tmp_path / "docs" / "pretrained.md"
    page.parent.mkdir()
    monkeypatch.setattr(writer, "ROOT", tmp_path)
    monkeypatch.setattr(writer, "PAGE", page)
    page.write_text(f"words\n\n{writer.BEGIN}\n\n| old |\n\n{writer.END}\n\nmore words\n")
    result = CliRunner().invoke(writer.main, ["--check"])
    assert result.exit_code == 1 and writer.REFRESH in result.output and "| old |" in page.read_text()
    assert CliRunner().invoke(writer.main, []).exit_code == 0
    assert CliRunner().invoke(writer.main, ["--check"]).exit_code == 0
    text = page.read_text()
    assert text.startswith("words\n") and text.endswith("\nmore words\n") and "| old |" not in text
    assert len(re.findall(r"^\| efficientnetlite0 \|", text, re.MULTILINE)) == 2  # the package, and the hub
    page.write_text("no table\n")
    assert "lacks the lines" in CliRunner().invoke(writer.main, []).output


def test_an_old_cli_reference_is_named_with_its_remedy(script, tmp_path, monkeypatch):
    writer = script("write_cli_reference")
    page = tmp_path / "docs" / "cli-reference.md"
    page.parent.mkdir()
    monkeypatch.setattr(writer, "ROOT", tmp_path)
    monkeypatch.setattr(writer, "PAGE", page)
    monkeypatch.setattr(writer, "reference", lambda: "new words\n")
    page.write_text("old words\n")
    result = CliRunner().invoke(writer.main, ["--check"])
    assert result.exit_code == 1
    assert "out of date" in result.output and "python scripts/write_cli_reference.py" in result.output
    assert CliRunner().invoke(writer.main, []).exit_code == 0
    assert page.read_text() == "new words\n"
    page.write_text("new\nwords\n")  # another version of click breaks lines elsewhere
    assert CliRunner().invoke(writer.main, ["--check"]).exit_code == 0


def test_the_cli_reference_has_every_command_and_setting():
    def names(group, prefix="kmed"):
        for name, command in group.commands.items():
            yield f"{prefix} {name}"
            if isinstance(command, click.Group):
                yield from names(command, f"{prefix} {name}")

    text = (DOCS / "cli-reference.md").read_text(encoding="utf-8")
    for name in names(main):
        assert f"\n## {name}\n" in text and f"Usage: {name} " in text
    for name in setting_names():
        assert f"| `{name}` |" in text


def test_the_python_reference_has_every_public_name():
    text = (DOCS / "python-api.md").read_text(encoding="utf-8")
    shown = re.findall(r"^::: kmed\.(\w+)$", text, re.MULTILINE)
    assert sorted(name for name in shown if name != "errors") == sorted(set(kmed.__all__) - {"__version__"})


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.stem)
def test_lines_of_prose_are_short(page):
    inside, long = False, []
    for line in page.read_text(encoding="utf-8").splitlines():
        inside ^= line.startswith("```")
        if len(line) > WIDTH and not inside and not line.startswith(("|", "![", "<!--")):
            long.append(line)
    assert long == []


def test_the_readme_is_short():
    assert (ROOT / "README.md").stat().st_size <= 8000


@pytest.mark.parametrize(
    ("text", "google"),
    [
        (
            "Does it.\n\nRaises: DataError: no file. RunError: two\n  lines.",
            "Raises:\n    DataError: no file.\n    RunError: two lines.",
        ),
        ("Does it.\n\nReturns: (Audit, paths).\nRaises: KmedError: bad.", "Returns:\n    : (Audit, paths)."),
        ("Does it.\n\nExample:\n  >>> f(\n  ...     1)", "Examples:\n    >>> f(\n    ...     1)"),
        ("Returns what it is: a number.", "Returns what it is: a number."),
        ("Does it.\n\nArgs:\n  a: a number,\n    or two.", "Args:\n  a: a number,\n    or two."),
    ],
    ids=["errors on the heading's line", "returns", "example", "a sentence", "arguments"],
)  # fmt: skip
def test_docstrings_become_those_of_google(script, text, google):
    pytest.importorskip("mkdocs", reason='mkdocs is not installed: pip install -e ".[docs]"')
    assert google in script("docs_site").to_google(text)


def test_ruff_has_one_version():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    pinned = re.search(r'"ruff==([\d.]+)"', (ROOT / "setup.py").read_text(encoding="utf-8"))[1]
    assert [repository["rev"] for repository in hooks["repos"]] == [f"v{pinned}"]


def test_the_workflow_calls_the_projects_own_script():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    assert {"run": "bash .ci/run"} in workflow["jobs"]["test"]["steps"]
    assert (ROOT / ".ci" / "run").is_file()
