"""kmed sweep --executor slurm: what it submits, waits for, resumes and requeues, with a stand-in for Slurm."""

import json
import os
import signal
import stat
import subprocess
import sys
import time

import pandas as pd
import pytest
from click.testing import CliRunner

from kmed.cli.main import main
from kmed.errors import ConfigError, RunError
from kmed.training import slurm, sweep
from kmed.training.slurm_options import parse_options

# Stand-ins for Slurm's programs: jobs are processes of this machine, whose states are files in $FAKE_SLURM.
SBATCH = """
import os, pathlib, re, subprocess, sys
home = pathlib.Path(os.environ["FAKE_SLURM"])
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
script = pathlib.Path(sys.argv[1])
text = script.read_text()
if "partition=none" in text:
    sys.exit("sbatch: error: invalid partition specified: none")
array = re.search(r"--array=0-(\\d+)%", text)
number = 100 + len(list(home.glob("*.sh")))
(home / f"{number}.sh").write_text(text)
for task in range(int(array[1]) + 1) if array else [None]:
    name = str(number) if task is None else f"{number}_{task}"
    subprocess.Popen([sys.executable, str(home / "launch"), name], **QUIET)
print(f"Submitted batch job {number}")
"""
LAUNCH = """
import os, pathlib, subprocess, sys
home, name = pathlib.Path(os.environ["FAKE_SLURM"]), sys.argv[1]
number, _, task = name.partition("_")
env = dict(os.environ, SLURM_JOB_ID=number, SLURM_NTASKS="1", SLURM_JOB_NUM_NODES="1", SLURM_NODEID="0")
env |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_NODELIST": "here"}
if task:
    env |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": task}
(home / f"{name}.state").write_text("RUNNING")
code = subprocess.call(["bash", str(home / f"{number}.sh")], env=env)
if not (home / f"{name}.requeued").exists():
    (home / f"{name}.state").write_text("FAILED" if code else "COMPLETED")
"""
SRUN = """
import os, pathlib, sys
arguments = sys.argv[1:]
output = arguments[arguments.index("--output") + 1]
job, task = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_ARRAY_TASK_ID", "")
output = output.replace("%A_%a", f"{job}_{task}").replace("%j", job).replace("%t", "0")
command = arguments[arguments.index("--output") + 2 :]
name = f"{job}_{task}" if task else job
pathlib.Path(os.environ["FAKE_SLURM"], f"{name}.pid").write_text(str(os.getpid()))
file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(file, 1), os.dup2(file, 2)
os.execvp(command[0], command)
"""
SACCT = """
import os, pathlib
print("JobID|State|NodeList")
for path in pathlib.Path(os.environ["FAKE_SLURM"]).glob("*.state"):
    print(f"{path.stem}|{path.read_text()}|here")
"""
SCONTROL = """
import os, pathlib, subprocess, sys
home, name = pathlib.Path(os.environ["FAKE_SLURM"]), sys.argv[2]
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
(home / f"{name}.requeued").touch()
subprocess.Popen([sys.executable, str(home / "launch"), name], **QUIET)
"""
# What stands for `kmed`: it leaves what a run leaves, and says which command it was. FAKE_RUN makes it fail or wait.
PROGRAM = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[-1])
folder.mkdir(exist_ok=True)
print("kmed", *sys.argv[1:], flush=True)
(folder / "config.yaml").touch()
if os.environ.get("FAKE_RUN") == folder.name:
    sys.exit(1)
stop = pathlib.Path(os.environ["FAKE_SLURM"], "stop")
while os.environ.get("FAKE_WAIT") == folder.name and "--resume" not in sys.argv and not stop.exists():
    time.sleep(0.05)
(folder / "result.csv").write_text("minutes\\n1\\n")
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """The folder of a stand-in for Slurm, whose programs are on the PATH."""
    home = tmp_path / "cluster"
    (home / "bin").mkdir(parents=True)
    programs = {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT, "scontrol": SCONTROL}
    for name, text in programs.items():
        path = home / "bin" / name
        path.write_text(f"#!{sys.executable}{text}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    (home / "launch").write_text(LAUNCH)
    monkeypatch.setenv("FAKE_SLURM", str(home))
    monkeypatch.setenv("PATH", f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}")
    yield home
    (home / "stop").touch()  # ends what a failed test has left


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """A sweep of two models whose commands are those of PROGRAM."""
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.setattr(slurm, "PROGRAM", (sys.executable, str(tmp_path / "program.py")))
    return sweep.make_plan(["resnet18", "vit"], ["--epochs=2"], tmp_path / "s")


def train(plan, options=("time=10",), **more):
    return slurm.train_all(plan, parse_options(options), **more)


def wait_for(path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


def test_an_array_of_jobs_trains_the_models_and_its_script_is_the_one_of_a_dry_run(cluster, plan, monkeypatch):
    options = parse_options(["time=1:30:00", "partition=gpu", "gpus=1", "mem=16GB", "cpus=4", "setup=module load x"])
    expected = slurm.batch_script(plan, options, jobs=1)
    done, lines = [], []
    monkeypatch.setattr(slurm, "say", lines.append)
    assert slurm.train_all(plan, options, jobs=1, finished=lambda run: done.append(run.folder.name)) == []
    assert sorted(done) == ["resnet18", "vit"]
    (script,) = [path.read_text() for path in cluster.glob("*.sh")]
    assert script == expected
    for flag in (
        "--array=0-1%1",
        "--time=90",
        "--partition=gpu",
        "--gpus-per-node=1",
        "--mem=16G",
        "--cpus-per-task=4",
    ):
        assert f"#SBATCH {flag}\n" in script
    assert "#SBATCH --requeue\n" in script and "#SBATCH --signal=USR2@90\n" in script
    assert "\nmodule load x\n" in script and "#SBATCH --job-name=kmed-s\n" in script
    logs = "".join(path.read_text() for path in (plan.folder / "slurm").glob("*.out"))
    for model in plan.models:
        assert f"kmed train --epochs=2 --model {model} --out {plan.run(model).folder}\n" in logs
    assert any(line.startswith("[1/2] resnet18: submitted as job 100_0. It prints to") for line in lines)
    with pytest.raises(RunError, match="All models of .* are trained: there is nothing to submit"):
        slurm.batch_script(plan, options, jobs=None)
    assert train(plan) == [] and len(list(cluster.glob("*.sh"))) == 1  # nothing is submitted again


def test_a_failed_model_is_named_and_the_next_call_resumes_it_alone(cluster, plan, monkeypatch):
    monkeypatch.setenv("FAKE_RUN", "vit")
    assert train(plan) == ["vit"]
    monkeypatch.delenv("FAKE_RUN")
    assert train(plan) == []
    log = (plan.folder / "slurm" / "101_0_log.out").read_text()
    assert f"kmed train --resume {plan.run('vit').folder}\n" in log
    assert json.loads((plan.folder / "slurm" / "jobs.json").read_text())["jobs"] == {"resnet18": "100_0", "vit": "101"}


def test_a_job_that_runs_out_of_time_is_requeued_and_continues(cluster, plan, monkeypatch):
    monkeypatch.setenv("FAKE_WAIT", "vit")  # as long as it is not resumed
    command = [sys.executable, "-c", WAITER, str(plan.folder), *slurm.PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as waiting:
        wait_for(plan.run("vit").config)
        os.kill(int((cluster / "100_1.pid").read_text()), signal.SIGUSR2)  # as Slurm does before the time limit
        assert waiting.communicate(timeout=180)[0].strip() == "[]"
    assert (cluster / "100_1.requeued").exists() and not (cluster / "100_0.requeued").exists()
    log = (plan.folder / "slurm" / "100_1_0_log.out").read_text()
    assert log.index("kmed train --epochs=2") < log.index("Requeued") < log.index("kmed train --resume")


# Waits for a sweep's jobs in a process of its own.
WAITER = """
import sys
from kmed.training import slurm, sweep
from kmed.training.slurm_options import parse_options
slurm.PROGRAM = tuple(sys.argv[2:])
print(slurm.train_all(sweep.read_plan(sys.argv[1]), parse_options(["time=10"])))
"""


def test_after_an_interruption_the_jobs_stay_and_are_waited_for_again(cluster, plan, monkeypatch):
    monkeypatch.setenv("FAKE_WAIT", "vit")
    lines, wait = [], slurm._wait_for
    monkeypatch.setattr(slurm, "say", lines.append)

    def interrupt(run):
        wait_for(plan.run("vit").config)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(plan, finished=interrupt)
    assert lines[-1].startswith("The jobs stay in Slurm's queue. `scancel 100_1` ends them;")

    def end_the_job(*arguments):
        (cluster / "stop").touch()
        return wait(*arguments)

    monkeypatch.setattr(slurm, "_wait_for", end_the_job)
    assert train(plan) == []
    assert "[2/2] vit: job 100_1 is running." in lines
    assert len(list(cluster.glob("*.sh"))) == 1


def test_what_slurm_refuses_is_one_line(cluster, plan):
    with pytest.raises(ConfigError, match="Slurm refuses the jobs: .*invalid partition specified: none"):
        train(plan, ["time=10", "partition=none"])


def test_a_machine_without_slurm_says_so(plan, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        ConfigError, match="There is no sbatch here. Run this where jobs are submitted, or add --dry-run"
    ):
        train(plan)


def test_a_dry_run_needs_no_slurm_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    command = ["sweep", "--models", "resnet34,resnet18", "--out", tmp_path / "s", "--executor", "slurm", "--dry-run"]
    result = CliRunner().invoke(main, [*map(str, command), "--slurm", "time=60", "--slurm", "gpus=1"])
    assert result.exit_code == 0, result.output
    assert "#SBATCH --array=0-1%2\n" in result.output and "#SBATCH --time=60\n" in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_table_is_that_of_the_sequential_sweep(cluster, small_npz, tmp_path):
    command = ["sweep", "--models", "vit,resnet18", "--image-size", "32x40", "--epochs", "2", "--batch-size", "16"]
    command += ["--data", str(small_npz), "--set", "train.dtype=float32", "--set", "evaluate.num_resamples=50"]
    for name, more in (("here", []), ("there", ["--executor", "slurm", "--slurm", "time=10", "--jobs", "1"])):
        result = CliRunner().invoke(main, [*command, "--out", str(tmp_path / name), *more])
        assert result.exit_code == 0, result.output
    tables = [
        pd.read_csv(tmp_path / name / "comparison" / "comparison.csv").drop(columns="minutes")
        for name in ("here", "there")
    ]
    pd.testing.assert_frame_equal(*tables)


def test_the_extra_is_named_if_submitit_is_missing(monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "submitit" else find(name))
    result = CliRunner().invoke(main, ["sweep", "--models", "vit", "--executor", "slurm", "--slurm", "time=10"])
    assert result.exit_code == 2 and "pip install kmed[slurm]" in result.output
