"""Every command has its function in `kmed`, with the same arguments and defaults."""

import importlib
import inspect

import click
import pytest

import kmed
from kmed.cli.main import main

# Command -> the function that does its work.
FUNCTIONS = {
    "train": "train",
    "sweep": "sweep",
    "tune": "tune",
    "crossval": "crossval",
    "evaluate": "evaluate",
    "recalibrate": "recalibrate",
    "report": "write_report",
    "compare": "compare",
    "ensemble": "ensemble",
    "explain": "explain_run",
    "models": "model_facts",
    "export": "export",
    "predict": "classify_files",
    "serve": "serve",
    "benchmark": "benchmark",
    "demo": "write_demo",
    "data show": "show_data",
    "data audit": "audit_data",
    "data labels": "find_label_errors",
    "data demo": "draw_demo",
    "data pack": "pack_data",
    "data download": "download_data",
}
# How a terminal shows results: a library returns them instead.
OF_THE_TERMINAL = {
    "train": {"quiet"},
    "crossval": {"quiet"},
    "tune": {"quiet"},
    "predict": {"as_json", "as_csv", "out", "merge"},
}
# What only Python can pass: objects that are already open, and functions to call.
OF_PYTHON = {"train": {"finished"}, "report": {"table", "model"}, "data demo": {"settings"}}


def commands(group=main, prefix=""):
    """Returns {"data show": command, ...}."""
    found = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found |= commands(command, f"{prefix}{name} ")
        else:
            found[f"{prefix}{name}"] = command
    return found


def plain(default):
    """Returns a default so that "not given" and "off" are one value, however click and Python write them."""
    return default if isinstance(default, (int, float, str)) and default is not False else None


def test_the_list_names_every_command():
    assert set(commands()) == set(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_command_and_its_function_take_the_same(name):
    function = getattr(kmed, FUNCTIONS[name])
    given = {
        parameter.name: plain(parameter.default)
        for parameter in commands()[name].params
        if parameter.name not in OF_THE_TERMINAL.get(name, set())
    }
    taken = {
        parameter.name: plain(parameter.default)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name not in OF_PYTHON.get(name, set())
    }
    assert given == taken


@pytest.mark.parametrize("name", FUNCTIONS.values())
def test_the_functions_are_public_and_documented(name):
    assert name in kmed.__all__
    assert inspect.getdoc(getattr(kmed, name))


def test_public_names_come_from_the_listed_modules():
    assert set(kmed.__all__) == {"__version__", *kmed._EXPORTS}
    for name, module in kmed._EXPORTS.items():
        assert getattr(kmed, name) is getattr(importlib.import_module(module), name)
        assert getattr(kmed, name).__module__ == module  # where it is defined, not re-exported


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'kmed' has no attribute 'trian'"):
        kmed.trian  # noqa: B018
