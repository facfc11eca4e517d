"""The rules of the house that can be read from the source: layers of imports, lightness, length."""

import ast
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent

# Each layer imports itself and what stands before it. A folder or module that is not named here fails the tests.
LAYERS = (
    ("errors", "version"),
    ("locks", "reading", "files", "progress", "runtime", "labels", "losses", "config", "figures", "tables"),
    ("metrics",),
    ("tasks", "schemas", "runs", "formats"),
    ("data",),
    ("models",),
    ("evaluation",),
    ("report",),
    ("training",),
    ("deployment",),
    ("cli",),
)
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}
WITH_CODE = {"kmed", "kmed.models", "kmed.cli"}  # the packages whose __init__.py may hold code


def modules(root):
    """Returns {dotted name: file} of the package `kmed` in the folder `root`."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((root / "kmed").rglob("*.py"))
    }


def imported(path, known):
    """Returns the modules among `known` that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else node.module for name in names]
        else:
            continue
        found |= {name for name in names if name.split(".")[0] == "kmed"}
    return found


def violations(root):
    """Returns what breaks the rules in the package below `root`, one line for each."""
    known = modules(root)
    graph = {name: imported(path, known) - {name} for name, path in known.items()}
    return [
        *_unknown_rooms(known),
        *_upward_imports(graph),
        *_circles(graph),
        *_code_in_packages(known),
    ]


def _room(name):
    """Returns the room of a module, such as "data" for "kmed.data.readers.npz"; "" for kmed itself."""
    return name.split(".")[1] if "." in name else ""


def _unknown_rooms(known):
    rooms = {_room(name) for name in known} - {"", "__main__"}
    return [f"no layer is named for kmed/{room}" for room in sorted(rooms - set(LAYER_OF))]


def _upward_imports(graph):
    for name, others in graph.items():
        room = _room(name)
        if room in ("", "__main__"):  # the face of the package reaches every room, late
            continue
        for other in sorted(others):
            target = _room(other)
            if target == "":
                yield f"{name} imports kmed itself, which stands above it"
            elif LAYER_OF.get(target, -1) > LAYER_OF.get(room, -1):
                yield f"{name} ({room}) imports {other} ({target}) from above"


def _circles(graph):
    left = {name: others & set(graph) for name, others in graph.items()}
    while free := [name for name, others in left.items() if not others & set(left)]:
        for name in free:
            del left[name]
    return [f"a circle among {', '.join(sorted(left))}"] if left else []


def _code_in_packages(known):
    for name, path in known.items():
        if path.name == "__init__.py" and name not in WITH_CODE:
            body = ast.parse(path.read_text(encoding="utf-8")).body
            if any(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in body):
                yield f"code in {name}.__init__"


def test_the_rules_hold():
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "text", "found"),
    [
        ("kmed/metrics/planted.py", "from kmed.data.table import Table\n", "from above"),
        ("kmed/data/planted.py", "def late():\n    import kmed.training.fit\n", "from above"),
        ("kmed/report/planted.py", "import kmed\n", "which stands above it"),
        ("kmed/data/first.py", "from kmed.data import second\n", "a circle among kmed.data.first, kmed.data.second"),
        ("kmed/training/__init__.py", "from kmed.training.fit import fit\n", "code in kmed.training.__init__"),
        ("kmed/helpers.py", "", "no layer is named for kmed/helpers"),
    ],
    ids=["upward", "upward inside a function", "kmed itself", "circle", "code in a package", "unknown room"],
)
def test_a_planted_fault_is_found(tmp_path, file, text, found):
    shutil.copytree(ROOT / "kmed", tmp_path / "kmed", ignore=shutil.ignore_patterns("*.pyc", "webapp"))
    (tmp_path / file).write_text(text, encoding="utf-8")
    if "first.py" in file:
        (tmp_path / "kmed/data/second.py").write_text("from kmed.data.first import nothing\n", encoding="utf-8")
    assert any(found in line for line in violations(tmp_path))


def test_the_ground_is_small():
    assert len(list((ROOT / "kmed").glob("*.py"))) - 2 <= 14  # tasks and runs are no ground; __init__ and __main__
    assert len(LAYERS[0]) + len(LAYERS[1]) <= 12


def test_model_families_do_not_import_each_other():
    from kmed.models.registry import FAMILIES

    known = modules(ROOT)
    families = {family.module for family in FAMILIES.values()}
    for name in families:
        assert not imported(known[name], known) & (families - {name})


@pytest.mark.parametrize("name", sorted(modules(ROOT)))
def test_modules_and_functions_stay_short(name):
    text = modules(ROOT)[name].read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            start = node.body[0].end_lineno if ast.get_docstring(node) else node.lineno  # docstrings may be long
            assert node.end_lineno - start < 60, f"{name}.{node.name} is too long"


def test_public_names_have_docstrings():
    missing = [
        f"{name}.{node.name}"
        for name, path in modules(ROOT).items()
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not missing


@pytest.mark.parametrize("statement", ["import kmed", "import kmed.cli", "import kmed.models", "import kmed.tasks"])
def test_importing_is_light(statement):
    heavy = "{'tensorflow', 'keras', 'jax', 'sklearn', 'matplotlib', 'scipy', 'keras_hub'}"
    code = f"import sys; {statement}; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"


def test_the_top_level_is_the_agreed_one():
    for name in (
        "kmed",
        "configs",
        "tests",
        "scripts",
        "data",
        "saved_models",
        "results",
        "docs",
        "setup.py",
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "mkdocs.yml",
        "LICENSE",
        "NOTICE",
    ):
        assert (ROOT / name).exists(), name


# Folders of tests that test no package of kmed.
OTHER_TESTS = {"docs", "fixtures", "reference", "scripts", "types"}
# Test files that are not named after one module: they go through all commands, and all public functions.
ACROSS_MODULES = {"cli/test_cli.py", "cli/test_public.py", "data/readers/test_public_csv_layouts.py"} | {
    "data/readers/test_public_folder_layouts.py",
    "data/test_reduced.py",
    "evaluation/test_unlabelled.py",
}


def test_tests_mirror_the_package():
    tests = ROOT / "tests"
    folders = [path for path in tests.rglob("*") if path.is_dir() and list(path.glob("test_*.py"))]
    folders = [path.relative_to(tests) for path in folders if path.relative_to(tests).parts[0] not in OTHER_TESTS]
    assert len(folders) > 8
    assert [str(folder) for folder in folders if not (ROOT / "kmed" / folder / "__init__.py").is_file()] == []
    files = {path.relative_to(tests) for folder in folders for path in (tests / folder).glob("test_*.py")}
    modules = {file: ROOT / "kmed" / file.parent / file.name.removeprefix("test_") for file in files}
    assert {file.as_posix() for file, module in modules.items() if not module.is_file()} == ACROSS_MODULES


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff_is_content(arguments):
    pytest.importorskip("ruff", reason='ruff is not installed: pip install -e ".[dev]"')
    result = subprocess.run([sys.executable, "-m", "ruff", *arguments, "."], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout
