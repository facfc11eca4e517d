"""The state of a run after an epoch, stored in a folder, from which training continues exactly.

Each finished epoch has a folder of its own (`checkpoints/epoch-0003`). It is written under another name and then
renamed, and only then are the older ones removed, so a process that is killed at any moment leaves a whole one.
"""

import dataclasses
import json
import math
import os
import pathlib
import shutil
from typing import Any

import numpy as np

from kmed.errors import RunError
from kmed.files import replacing
from kmed.reading import read_arrays, read_json
from kmed.schemas.records import StateFile, check, stamped


@dataclasses.dataclass
class State:
    """The state of training, without the arrays.

    Attributes:
      epoch: number of finished epochs.
      rows: the rows of history.csv so far, one dict per epoch.
      best_epoch: 1-based; 0 as long as the monitored score was undefined in every epoch.
      best_value: the monitored score of the best epoch; None without one.
      waited: number of epochs since the best one.
      num_updates: number of steps in the weight average.
      seconds: training time so far.
    """

    epoch: int = 0
    rows: list = dataclasses.field(default_factory=list)
    best_epoch: int = 0
    best_value: float | None = None
    waited: int = 0
    num_updates: int = 0
    seconds: float = 0.0


def newest(folder: pathlib.Path) -> pathlib.Path | None:
    """Returns the checkpoint of the last finished epoch under `folder`, or None before the first."""
    return max(folder.glob("epoch-*"), default=None)


def save(folder: pathlib.Path, state: State, model, average, *, improved: bool) -> None:
    """Writes the checkpoint of epoch `state.epoch`, then removes the previous one.

    Args:
      folder: the folder of checkpoints.
      model: compiled keras.Model; its variables (with those of random generators) and its optimizer's are stored.
      average: kmed.training.ema.WeightAverage or None.
      improved: whether this epoch is the best so far; if not, the previous checkpoint's best weights are kept.
    """
    previous = newest(folder)
    with replacing(folder / f"epoch-{state.epoch:04d}") as temporary:
        temporary.mkdir()
        _save_arrays(temporary / "model.npz", [variable.value for variable in _variables(model)])
        _save_arrays(temporary / "optimizer.npz", [variable.value for variable in model.optimizer.variables])
        if average is not None:
            _save_arrays(temporary / "average.npz", average.values)
        if improved or previous is None:
            values = average.values if average is not None else [weight.value for weight in model.weights]
            _save_arrays(temporary / "best.npz", values)
        else:
            _link_or_copy(previous / "best.npz", temporary / "best.npz")
        text = json.dumps(stamped(dataclasses.asdict(state)))
        (temporary / "state.json").write_text(text, encoding="utf-8")
        _sync(temporary)
    for path in folder.iterdir():  # the previous checkpoint, and unfinished ones of killed processes
        if path.name != f"epoch-{state.epoch:04d}":
            shutil.rmtree(path)


def read_state(checkpoint: pathlib.Path | None) -> State:
    """Returns the stored State, or a new one if there is no checkpoint."""
    if checkpoint is None:
        return State()
    path = checkpoint / "state.json"
    stored = check(StateFile, read_json(path, _damaged), path, _damaged)
    if checkpoint.name != f"epoch-{stored.epoch:04d}":
        raise _damaged(f"{path}: epoch is {stored.epoch}, but the folder is {checkpoint.name}.")
    fields = {field.name: getattr(stored, field.name) for field in dataclasses.fields(State)}
    rows = [{name: math.nan if value is None else value for name, value in row.items()} for row in stored.rows]
    return State(**fields | {"rows": [row | {"epoch": int(row["epoch"])} for row in rows]})


def _damaged(message: str) -> RunError:
    return RunError(f"{message} The checkpoint is damaged: remove its folder to start the run again.")


def restore(checkpoint: pathlib.Path, state: State, model, average) -> None:
    """Loads the stored arrays into `model`, its built optimizer and `average`."""
    import keras

    _load_arrays(checkpoint / "model.npz", _variables(model))
    _load_arrays(checkpoint / "optimizer.npz", model.optimizer.variables)
    if average is not None:
        arrays = _fitting_arrays(checkpoint / "average.npz", model.weights)
        average.values = [keras.ops.convert_to_tensor(array) for array in arrays]
        average.num_updates = state.num_updates


def load_best(folder: pathlib.Path, model) -> None:
    """Loads the weights of the best epoch into `model`. Raises RunError if there is no checkpoint in `folder`."""
    last = newest(folder)
    if last is None:
        raise RunError(f"{folder} holds no checkpoint. Start a new run instead.")
    _load_arrays(last / "best.npz", model.weights)


def _variables(model) -> list:
    """Returns the weights, and the states of random generators (dropout, stochastic depth)."""
    metrics = {id(variable) for variable in model.metrics_variables}
    return [variable for variable in model.variables if id(variable) not in metrics]


def _save_arrays(path: pathlib.Path, values) -> None:
    arrays: dict[str, Any] = {f"{number:05d}": _to_numpy(value) for number, value in enumerate(values)}
    np.savez(path, **arrays)


def _to_numpy(value) -> np.ndarray:
    import keras

    return keras.ops.convert_to_numpy(value)


def _fitting_arrays(path: pathlib.Path, variables) -> list[np.ndarray]:
    """Returns the arrays of a file. Raises RunError unless there is one for each variable, of its shape and kind."""
    stored = read_arrays(path, _damaged)
    arrays = [stored[name] for name in sorted(stored)]
    found = [(tuple(array.shape), array.dtype.kind in "biuf") for array in arrays]
    if found != [(tuple(variable.shape), True) for variable in variables]:
        raise RunError(f"{path} does not fit this model: another version of kmed or Keras made it. Start a new run.")
    return arrays


def _load_arrays(path: pathlib.Path, variables) -> None:
    for variable, array in zip(variables, _fitting_arrays(path, variables), strict=True):
        variable.assign(array)


def _link_or_copy(old: pathlib.Path, new: pathlib.Path) -> None:
    """Makes `new` a hard link to `old` if the file system has them, else a copy."""
    try:
        os.link(old, new)
    except OSError:
        shutil.copyfile(old, new)


def _sync(folder: pathlib.Path) -> None:
    """Writes the files through to the disk, so that they are whole after a power cut that follows the rename."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
