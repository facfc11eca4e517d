"""Every fenced command of the documentation is run, or a comment before it says why not.

A fence without a comment is run here: `kmed` commands in this process, Python by exec, page by page in the folder of a
reader who has some images and one finished run. Training is cut short; see QUICK.
"""

import pathlib
import re
import shlex

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import kmed
from kmed.cli.main import main

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = ("bash", "python")
SHOWN = ("text", "yaml")  # nothing to run
# Fences of the README that tests/test_readme.py finds by these marks and runs.
ELSEWHERE = ("main command", "phone", "python example", "test command")
# What is added to `kmed train`, so that it takes seconds.
QUICK = [
    *["--model", "vit", "--image-size", "32x40", "--epochs", "1", "--batch-size", "16"],
    *["--weights", "none"],
    *["--set", "model.options={patch_size: 8, width: 16, depth: 1, num_heads: 2}"],
    *["--set", "train.tensorboard=false", "--set", "train.dtype=float32", "--set", "evaluate.num_resamples=20"],
]
FENCE = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


def fences(page):
    """Yields (mark or None, language, code) of every fence of a page."""
    for found in FENCE.finditer(page.read_text(encoding="utf-8")):
        yield found["mark"], found["language"], found["code"]


def is_run_here(mark):
    """Returns whether a fence with this comment before it (None: without one) is run by this file."""
    return mark is None or not (mark in ELSEWHERE or mark.startswith("not run"))


def commands(code):
    """Yields the commands of a bash fence as lists of words."""
    for line in code.replace("\\\n", " ").splitlines():
        for command in line.split(" && "):
            words = shlex.split(command, comments=True)
            if words:
                yield words


def quick_functions(patch):
    """Lets what a Python fence trains take seconds too."""
    train, build = kmed.train, kmed.build_model
    settings = [word for word in QUICK if "=" in word]

    def quick_train(**given):
        return train(**(given | {"settings": [*given["settings"], *settings]}))

    def quick_build(name, *given, **more):
        small = {"patch_size": 8, "width": 16, "depth": 1, "num_heads": 2} if name == "vit" else {}
        return build(name, *given, **small, **more)

    patch.setattr(kmed, "train", quick_train, raising=False)
    patch.setattr(kmed, "build_model", quick_build, raising=False)


def run_bash(code, done=None):
    """Runs the `kmed` commands of a fence; any other needs a comment that says why it is not run.

    A command that is in `done`, since another page has it too, is not run again.
    """
    done = set() if done is None else done
    for program, *arguments in commands(code):
        assert program == "kmed", f"only kmed is run here; mark the fence <!-- not run: ... -->: {program}"
        if tuple(arguments) in done:
            continue
        done.add(tuple(arguments))
        if arguments[0] == "train" and "--help" not in arguments:
            arguments += QUICK
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, (arguments, result.output, result.exception)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """The folder of a reader, and the commands run in it: images of two classes by patient, a CSV, a finished run."""
    folder = tmp_path_factory.mktemp("reader")
    rng = np.random.default_rng(0)
    rows = ["path,label,patient_id"]
    for label, name in enumerate(("dark", "light")):
        (folder / "my_images" / name).mkdir(parents=True)
        for group in range(12):
            for number in range(2):
                path = f"my_images/{name}/patient{label}{group:02d}_{number}.png"
                pixels = rng.integers(0, 100, (32, 40, 3)) + 100 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / path)
                rows.append(f"{path},{name},p{label}{group}")
    (folder / "my.csv").write_text("\n".join(rows) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = set()
        run_bash(r"kmed train --data my_images --set data.group='regex:(patient\d+)'", done)
    return folder, done


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_fence_is_run_or_says_why_not(page):
    for mark, language, code in fences(page):
        assert language in (*RUN, *SHOWN), f"{page.name}: what is a fence of {language!r}? {code}"
        if mark is not None and language in RUN:
            reason = re.fullmatch(r"not run(?: here)?: (\S.{9,})", mark)
            assert reason or (page.name == "README.md" and mark in ELSEWHERE), f"{page.name}: {mark}"


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(is_run_here(mark) and language in RUN for mark, language, _ in fences(page))],
    ids=lambda page: page.stem,
)
def test_the_commands_of_a_page_run(page, reader, monkeypatch):
    folder, done = reader
    monkeypatch.chdir(folder)
    quick_functions(monkeypatch)
    names = {"__name__": "__main__"}
    for mark, language, code in fences(page):
        if language == "bash" and is_run_here(mark):
            run_bash(code, done)
        elif language == "python" and is_run_here(mark):
            exec(compile(code, f"{page.name}", "exec"), names)  # noqa: S102 - a page of this project


def test_a_fence_is_found_with_its_mark(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```bash\none\n```\n\n<!-- not run: it has no end -->\n```python\ntwo\n```\n\n```text\nthree\n```\n"
    )
    assert list(fences(page)) == [
        (None, "bash", "one\n"),
        ("not run: it has no end", "python", "two\n"),
        (None, "text", "three\n"),
    ]
    assert [is_run_here(mark) for mark, _, _ in fences(page)] == [True, False, True]


def test_what_is_neither_run_nor_marked_fails():
    with pytest.raises(AssertionError, match="mark the fence"):
        run_bash("pip install kmed\n")
    with pytest.raises(AssertionError, match="There is no command 'trian'"):
        run_bash("kmed --version && kmed trian\n")
