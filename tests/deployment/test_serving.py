"""`kmed serve` before and around the service: what it refuses, what it says, and its end by SIGTERM."""

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from click.testing import CliRunner
from services import TOKEN, picture

import kmed
from kmed.cli.main import main
from kmed.deployment import serving
from kmed.errors import ConfigError, RunError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_queue": 0}, "max_queue must be above 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"format": "tfllite"}, "Did you mean 'tflite'"),
        ({"format": "onnx", "quantize": "int8"}, "Only tflite is quantized"),
        ({"port": 70000}, "port must be 0 to 65535. Received: port=70000"),
        ({"host": "no.such.host.invalid"}, "Cannot listen on no.such.host.invalid, port 8000"),
        ({"token_file": "nowhere.txt"}, "The token cannot be read from nowhere.txt: No such file"),
    ],
)
def test_what_cannot_be_served_is_one_line_before_the_model_is_loaded(short_run, monkeypatch, arguments, message):
    monkeypatch.delenv("KMED_TOKEN", raising=False)
    monkeypatch.setattr(serving, "load_backend", lambda: pytest.fail("the model was about to be loaded"))
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        kmed.serve(short_run.folder, **arguments)
    assert "\n" not in str(caught.value)


def test_a_run_that_does_not_exist(tmp_path):
    with pytest.raises(RunError):
        kmed.serve(tmp_path / "none")
    result = CliRunner().invoke(main, ["serve", str(tmp_path / "none")])
    assert result.exit_code == 1 and result.output.startswith("Error: ")


def test_a_port_that_is_taken(short_run, monkeypatch):
    monkeypatch.setattr(serving, "load_backend", lambda: pytest.fail("the model was about to be loaded"))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ConfigError, match="Address already in use. Give another host or port"):
            kmed.serve(short_run.folder, port=other.getsockname()[1])


@pytest.mark.parametrize("package", ["fastapi", "python_multipart"])
def test_without_its_packages_the_extra_is_named(short_run, monkeypatch, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest))
    with pytest.raises(ConfigError, match=rf"needs {package.replace('_', '-')}: pip install kmed\[serve\]"):
        kmed.serve(short_run.folder)


def test_a_format_that_was_not_exported_names_the_command(short_run):
    with pytest.raises(RunError, match="kmed export .* --format tflite"):
        kmed.serve(short_run.folder, port=0, format="tflite")


def test_the_command_answers_and_ends_by_sigterm(short_run, tmp_path):
    """The only test in a process of its own: the line with the address, an answer, a warning, and exit code 0."""
    file = tmp_path / "token.txt"
    file.write_text(TOKEN)
    command = [sys.executable, "-m", "kmed", "serve", str(short_run.folder), "--host", "0.0.0.0", "--port", "0"]
    environment = {name: value for name, value in os.environ.items() if name != "KMED_TOKEN"}
    command += ["--token-file", str(file), "--batch-size", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"at http://0\.0\.0\.0:(\d+) ", line):
                break
        else:
            pytest.fail("".join(said))
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "image/png"}
        request = urllib.request.Request(f"http://127.0.0.1:{found[1]}/v1/predict", picture(), headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                assert json.load(response)["answers"][0]["error"] == ""
        finally:
            process.send_signal(signal.SIGTERM)
            rest = process.stderr.read()
    assert process.returncode == 0
    assert "POST /v1/predict 200 " in rest and "Stopping: " in rest and "Stopped after 1 requests." in rest
    assert "Traceback" not in rest and TOKEN not in "".join(said) + rest
