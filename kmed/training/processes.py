"""Several processes that train one model together: who they are, and how they exchange arrays.

They are joined by JAX's runtime, on one machine or several. Each one runs the same program; the process with index 0
leads: it alone writes the run folder.
"""

import contextlib
import json
import os
import re
import sys

import numpy as np
import pandas as pd

from kmed import runtime
from kmed.data.readable import look_at
from kmed.data.table import Table
from kmed.errors import ConfigError, RunError

# In the messages of JAX's errors after another process has gone; their types differ with the operation.
_LOST = re.compile(r"Gloo|NCCL|UNAVAILABLE|DEADLINE_EXCEEDED|coordination service|Socket closed|Connection reset")
HEARTBEAT = 20  # seconds without a sign of life after which a process counts as dead


def join(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Joins the processes of one run; to be called before anything is computed.

    Args:
      coordinator: HOST:PORT of the process with index 0, which must be free there; None: what Slurm or Open MPI says.
      num_processes: how many there are; None as above.
      process_id: the index of this process, from 0; None as above.
    Raises: ConfigError: the backend is not JAX, some of the arguments are missing, or the others cannot be reached.
    """
    given = {"--coordinator": coordinator, "--num-processes": num_processes, "--process-id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise ConfigError(f"{', '.join(given)} belong together. Missing: {', '.join(missing)}.")
    if coordinator is not None:
        _check(coordinator, num_processes, process_id)
    if (backend := runtime.choose_backend()) != "jax":
        raise ConfigError(
            "Several processes train one model only on JAX. Set the environment variable KERAS_BACKEND=jax for each of "
            f"them. Received: {backend}."
        )
    try:
        import jax
    except ModuleNotFoundError:
        raise ConfigError("Several processes train one model only on JAX. Install it with: pip install jax") from None
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=HEARTBEAT,
        )
    except (RuntimeError, ValueError) as error:
        what = "Neither Slurm nor Open MPI has started this process" if coordinator is None else "They did not meet"
        raise ConfigError(
            f"The processes cannot be joined. {what}: {str(error).strip().splitlines()[0]} Give --coordinator "
            "HOST:PORT, --num-processes N and --process-id I to each of them."
        ) from None


def _check(coordinator: str, num_processes, process_id) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"--coordinator must be HOST:PORT, such as 10.0.0.1:9911. Received: {coordinator!r}.")
    if not num_processes >= 1 or not 0 <= process_id < num_processes:
        raise ConfigError(
            f"--process-id must be from 0 to --num-processes - 1. Received: {process_id} of {num_processes} processes."
        )


def number() -> int:
    """Returns how many processes train together; 1 for an ordinary run."""
    return sys.modules["jax"].process_count() if _joined() else 1


def index() -> int:
    """Returns the index of this process, from 0."""
    return sys.modules["jax"].process_index() if _joined() else 0


def leads() -> bool:
    """Returns whether this process writes the run folder."""
    return index() == 0


def _joined() -> bool:
    """Returns whether `join` was called; JAX is not imported where it was not."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def own_rows(num_rows: int) -> np.ndarray:
    """Returns which of N rows are this process's part: contiguous, and as many for each process but the last ones."""
    size = -(-num_rows // number())
    return np.arange(num_rows)[index() * size : (index() + 1) * size]


def join_parts(part: np.ndarray, num_rows: int) -> np.ndarray:
    """Returns the rows (N, ...) of all processes from the `own_rows` (n, ...) of each."""
    if number() == 1:
        return part
    from jax.experimental import multihost_utils

    size = -(-num_rows // number())
    padded = np.zeros((size, *part.shape[1:]), part.dtype)
    padded[: len(part)] = part
    return np.asarray(multihost_utils.process_allgather(padded)).reshape(-1, *part.shape[1:])[:num_rows]


def gather_texts(text: str) -> list[str]:
    """Returns the texts that all processes give, in the order of the processes."""
    if number() == 1:
        return [text]
    from jax.experimental import multihost_utils

    own = np.frombuffer(text.encode(), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.asarray(len(own), np.int32)))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(own)] = own
    texts = np.asarray(multihost_utils.process_allgather(padded)).reshape(number(), -1)
    return [row[:length].tobytes().decode() for row, length in zip(texts, lengths, strict=True)]


def look_together(table: Table) -> pd.DataFrame:
    """Returns what `kmed.data.readable.look_at` says of a table, of which each process looks at its own part."""
    if number() == 1:
        return look_at(table)
    own = look_at(table.take(own_rows(len(table))))
    rows = own.astype(object).where(own.notna(), None).to_numpy().tolist()
    joined = [row for text in gather_texts(json.dumps(rows)) for row in json.loads(text)]
    return pd.DataFrame(joined, columns=own.columns)


def agree(value: int) -> int:
    """Returns the value that the leading process has given."""
    if number() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.asarray(value, np.int32)))


def leave() -> None:
    """Parts from the others, who must do so at the same time; from then on this is an ordinary process."""
    if _joined():
        sys.modules["jax"].distributed.shutdown()


@contextlib.contextmanager
def reporting_lost_ones(continue_with: str):
    """Raises RunError in place of JAX's error if another process has gone.

    Args:
      continue_with: the command that continues, for the message.
    """
    if number() == 1:
        yield
        return
    import jax

    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if not _LOST.search(str(error)):
            raise
        raise RunError(
            f"Another of the {number()} processes has ended or cannot be reached. Start all of them again to go on "
            f"after the last finished epoch: {continue_with} ({str(error).strip().splitlines()[0]})"
        ) from error


def end(exit_code: int) -> None:
    """Ends this process at once if others are joined to it; the usual end would wait for them, who may be gone."""
    if _joined() and number() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
