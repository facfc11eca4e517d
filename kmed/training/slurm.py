"""The runs of a sweep as an array of Slurm jobs, submitted with submitit.

Each job runs the `kmed train` command that `kmed.training.sweep` would run here. A job that is preempted, or reaches
its time limit, is put into the queue again, and continues after its last finished epoch.
"""

import dataclasses
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from kmed.errors import ConfigError, RunError
from kmed.files import write_json
from kmed.progress import say
from kmed.reading import read_json
from kmed.runs import Run, has_ended
from kmed.schemas.records import check, stamped
from kmed.schemas.searches import JobsFile
from kmed.training.sweep import SweepPlan, remove_earlier_start

FOLDER, JOBS = "slurm", "jobs.json"  # in the folder of a sweep: submitit's files, and which job trains which model
PROGRAM = (sys.executable, "-m", "kmed")
MAX_TIMEOUTS = 20  # how often a job may reach its time limit and continue
# States of Slurm in which a job has not come to its end.
ACTIVE = {"PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "COMPLETING", "REQUEUED", "PREEMPTED", "RESIZING"}


@dataclasses.dataclass(frozen=True)
class Job:
    """What a job does; Slurm's node unpickles it, and needs kmed and the folder under the same paths.

    Attributes:
      start: the command that begins the run.
      resume: the command that continues it.
      folder: the run folder.
    """

    start: tuple[str, ...]
    resume: tuple[str, ...]
    folder: str

    def __call__(self) -> int:
        """Runs the command that fits the run folder as it is now, and returns its exit code."""
        command = self.resume if Run(pathlib.Path(self.folder)).config.exists() else self.start
        return subprocess.call(command, preexec_fn=_ignore_signals)

    def checkpoint(self):
        """Returns what the job does when it is put into the queue again; submitit calls it."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def _ignore_signals() -> None:
    """Leaves Slurm's warnings to submitit, which ends the command and puts the job into the queue again."""
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def make_job(plan: SweepPlan, model: str, *, quiet: bool) -> Job:
    """Returns the job that trains a model of a sweep."""
    program = (*PROGRAM, *(["--quiet"] if quiet else []))
    start, resume = ((*program, *command) for command in (plan.start_command(model), plan.resume_command(model)))
    return Job(tuple(start), tuple(resume), str(plan.run(model).folder))


def _parameters(plan: SweepPlan, options: dict, jobs: int | None, count: int) -> dict[str, Any]:
    """Returns all parameters of submitit for so many jobs, of which `jobs` run at once; None: all."""
    name = re.sub(r"[^\w.-]", "_", f"kmed-{plan.folder.resolve().name}")
    shared = {"job_name": name, "stderr_to_stdout": True, "additional_parameters": {"requeue": True}}
    return shared | {"array_parallelism": jobs or count} | options


def batch_script(plan: SweepPlan, options: dict, *, jobs: int | None) -> str:
    """Returns the script that `train_all` would submit for the models that are not trained yet; nothing is written.

    Raises: RunError: all models are trained.
    """
    from submitit.slurm import slurm

    left = [model for model in plan.models if not has_ended(plan.run(model))]
    if not left:
        raise RunError(f"All models of {plan.folder} are trained: there is nothing to submit.")
    folder = (plan.folder / FOLDER).absolute()
    parameters = _parameters(plan, options, jobs, len(left))
    command = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    count = len(left) if len(left) > 1 else None
    return slurm._make_sbatch_string(command=command, folder=folder, map_count=count, **parameters)


def train_all(
    plan: SweepPlan,
    options: dict,
    *,
    jobs: int | None = None,
    quiet: bool = False,
    finished: Callable[[Run], None] = lambda run: None,
) -> list[str]:
    """Trains the models that are not trained yet as jobs of Slurm, waits for them, and returns those that failed.

    Jobs that an earlier call has submitted and that have not ended are waited for, and not submitted again.

    Args:
      plan: from `kmed.training.sweep.make_plan` or `read_plan`.
      options: from `kmed.training.slurm_options.parse_options`.
      jobs: how many run at once; None: as many as Slurm has room for.
      quiet: whether the runs print only results and errors.
      finished: called with the Run of each model as soon as it is trained, or found to be trained already.
    Raises: ConfigError: this machine has no Slurm, or it refuses the jobs. KeyboardInterrupt: Ctrl-C; the jobs stay.
    """
    for program in ("sbatch", "srun"):
        if shutil.which(program) is None:
            raise ConfigError(f"There is no {program} here. Run this where jobs are submitted, or add --dry-run.")
    left = []
    for model in plan.models:
        if has_ended(plan.run(model)):
            say(f"{_place(plan, model)}: already finished.")
            finished(plan.run(model))
        else:
            left.append(model)
    waiting = _find_active(plan, left)
    for model, job in waiting.items():
        say(f"{_place(plan, model)}: job {job.job_id} is {job.state.lower()}.")
    waiting |= _submit(plan, options, [model for model in left if model not in waiting], jobs, quiet)
    try:
        return _wait_for(plan, waiting, finished)
    except KeyboardInterrupt:
        ids = " ".join(job.job_id for job in waiting.values())
        say(f"The jobs stay in Slurm's queue. `scancel {ids}` ends them; --resume {plan.folder} waits for them again.")
        raise


def _place(plan: SweepPlan, model: str) -> str:
    return f"[{plan.models.index(model) + 1}/{len(plan.models)}] {model}"


def _find_active(plan: SweepPlan, models: list[str]) -> dict[str, Any]:
    """Returns {model: job} of those that an earlier call has submitted and that have not ended."""
    from submitit.slurm.slurm import SlurmJob

    folder = plan.folder / FOLDER
    found: dict[str, Any] = {}
    for model, job_id in _read_jobs(plan).items():
        if model in models:
            job: SlurmJob = SlurmJob(folder=folder, job_id=job_id)
            if not job.paths.result_pickle.exists() and job.get_info().get("State", "").split(" ")[0] in ACTIVE:
                found[model] = job
    return found


def _read_jobs(plan: SweepPlan) -> dict[str, str]:
    path = plan.folder / FOLDER / JOBS
    return check(JobsFile, read_json(path), path).jobs if path.exists() else {}


def _submit(plan: SweepPlan, options: dict, models: list[str], jobs: int | None, quiet: bool) -> dict[str, Any]:
    """Returns {model: job} of the jobs that it submits, as one array."""
    import submitit

    if not models:
        return {}
    for model in models:
        remove_earlier_start(plan.run(model))
    folder = (plan.folder / FOLDER).absolute()
    executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=MAX_TIMEOUTS)
    executor.update_parameters(**_parameters(plan, options, jobs, len(models)))
    try:
        with executor.batch():
            submitted = {model: executor.submit(make_job(plan, model, quiet=quiet)) for model in models}
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[-1]
        raise ConfigError(f"Slurm refuses the jobs: {reason}") from None
    write_json(
        folder / JOBS, stamped({"jobs": _read_jobs(plan) | {name: job.job_id for name, job in submitted.items()}})
    )
    for model, job in submitted.items():
        say(f"{_place(plan, model)}: submitted as job {job.job_id}. It prints to {job.paths.stdout}")
    return submitted


def _wait_for(plan: SweepPlan, waiting: dict[str, Any], finished: Callable[[Run], None]) -> list[str]:
    """Waits until all jobs have ended; returns the models whose run has failed, in the order of the sweep."""
    failed = []
    while waiting:
        for model, job in [(model, job) for model, job in waiting.items() if job.done()]:
            del waiting[model]
            run = plan.run(model)
            if run.result.exists():
                say(f"{_place(plan, model)}: finished.")
                finished(run)
            else:
                failed.append(model)
                say(f"{_place(plan, model)}: failed ({job.state.lower()}). It printed to {job.paths.stdout}")
        if waiting:
            time.sleep(0.5)
    return [model for model in plan.models if model in failed]
