"""The house rules that can be read from the source: levels of imports, lightness, length."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "kmed"

# Imports go down or sideways, never up. A module that is not listed fails the test below.
LEVELS = {
    "kmed": 0, "errors": 0, "config": 0, "files": 0, "progress": 0,
    "losses": 1, "metrics": 1, "intervals": 1, "class_scores": 1, "reliability": 1, "scores": 1, "priors": 1,
    "calibration": 1, "thresholds": 1, "selective": 1, "subgroups": 1, "tasks": 1, "runtime": 1, "figures": 1,
    "averaging": 1, "optimizer": 1, "callbacks": 1, "estimate": 1,
    "data": 1, "data.table": 1, "models.layers": 1,
    "data.sources": 2, "data.demo": 2, "data.splits": 2, "data.audit": 2, "data.augment": 2, "data.images": 2,
    "data.blood_cells": 2, "data.folders": 2, "data.csv_labels": 2, "data.groups": 2, "data.pack": 2,
    "data.show": 2, "data.download": 2, "data.dicom": 2,
    "data.demo_folder": 2, "data.demo_patients": 2, "data.demo_smears": 2, "data.demo_xrays": 2,
    "data.fingerprints": 2, "data.visual_words": 2, "data.alignment": 2, "data.near_duplicates": 2, "data.leaks": 2,
    "data.audit_sheet": 2, "data.audit_report": 2,
    "models.registry": 1, "models.resnet": 2, "models.densenet": 2, "models.efficientnet": 2, "models.vit": 2,
    "runs": 2, "checkpoint": 2, "predictions": 2, "runners": 2, "tflite_metadata": 2, "models.keras_file": 2,
    "data.pipeline": 3, "data.prepare": 3, "models.origin": 3, "models.weights": 3, "models": 3, "models.facts": 3,
    "judging": 3, "serving": 3, "evaluation": 3, "formats": 3, "novelty": 3, "latency": 3,
    "page": 2, "gallery": 4, "report": 5, "summary": 4, "results": 4, "compare": 5, "tensorboard": 4, "train": 4,
    "explanation": 4, "explain_run": 5,
    "exporting": 5, "export_record": 5, "benchmarking": 5, "classify": 5, "answers": 5, "demo_page": 5, "sweep": 5,
    "commands": 5, "cli_data": 6, "cli_use": 6, "cli": 6, "__main__": 6,
}  # fmt: skip
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    .removesuffix(".__init__")
    .replace("__init__", "kmed"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imported(path: pathlib.Path) -> set[str]:
    """Returns the kmed modules a file imports, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "kmed":
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name.removeprefix("kmed.") in MODULES else node.module for name in inner]
        else:
            continue
        found |= {name.removeprefix("kmed.") for name in names if name.split(".")[0] == "kmed"}
    return found


def test_every_module_has_a_level():
    assert set(MODULES) == set(LEVELS)


@pytest.mark.parametrize("name", sorted(LEVELS))
def test_imports_never_go_up(name):
    upward = {other for other in imported(MODULES[name]) if LEVELS[other] > LEVELS[name]}
    assert not upward, f"{name} (level {LEVELS[name]}) imports {upward} from above"


def test_imports_have_no_cycle():
    graph = {name: imported(path) - {name} for name, path in MODULES.items()}
    while graph:
        free = [name for name, others in graph.items() if not others & set(graph)]
        assert free, f"a cycle among {sorted(graph)}"
        for name in free:
            del graph[name]


def test_model_families_do_not_import_each_other():
    families = {"models.resnet", "models.densenet", "models.efficientnet", "models.vit"}
    for name in families:
        assert not imported(MODULES[name]) & (families - {name})


@pytest.mark.parametrize("name", sorted(MODULES))
def test_modules_and_functions_stay_short(name):
    text = MODULES[name].read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (name, node.name) != ("train", "train"):
            start = node.body[0].end_lineno if ast.get_docstring(node) else node.lineno  # docstrings may be long
            assert node.end_lineno - start < 60, f"{name}.{node.name} is too long"


def test_public_names_have_docstrings():
    missing = [
        f"{name}.{node.name}"
        for name, path in MODULES.items()
        for node in ast.parse(path.read_text()).body
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
        "LICENSE",
        "NOTICE",
    ):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff_is_content(arguments):
    pytest.importorskip("ruff", reason='ruff is not installed: pip install -e ".[dev]"')
    result = subprocess.run([sys.executable, "-m", "ruff", *arguments, "."], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout
