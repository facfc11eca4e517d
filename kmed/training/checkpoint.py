"""The state of a run after an epoch: one folder, renamed into place, from which training goes on exactly.

Each finished epoch has a folder of its own (`checkpoints/epoch-0003`), which appears whole by one
rename; only then are the older ones removed. So a process killed at any moment leaves a whole one.
"""

import dataclasses
import json
import os
import pathlib
import shutil

import numpy as np

from kmed.errors import RunError
from kmed.files import replacing


@dataclasses.dataclass
class State:
    """What training knows besides the arrays.

    Attributes:
      epoch: how many epochs are finished.
      rows: history.csv's rows so far, one dict an epoch.
      best_epoch: 1-based; 0 before the first.
      best_value: the monitored score of that epoch.
      waited: epochs since then.
      num_updates: steps that the weight average has seen.
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
    """Writes the checkpoint of epoch `state.epoch`, then removes the one before.

    Args:
      folder: the folder of checkpoints.
      model: compiled keras.Model; its variables (random generators included) and its optimizer's are kept.
      average: kmed.training.ema.WeightAverage or None.
      improved: whether this epoch is the best so far; else the best weights are taken over from the checkpoint before.
    """
    before = newest(folder)
    with replacing(folder / f"epoch-{state.epoch:04d}") as temporary:
        temporary.mkdir()
        _save_arrays(temporary / "model.npz", [variable.value for variable in _variables(model)])
        _save_arrays(temporary / "optimizer.npz", [variable.value for variable in model.optimizer.variables])
        if average is not None:
            _save_arrays(temporary / "average.npz", average.values)
        if improved:
            values = average.values if average is not None else [weight.value for weight in model.weights]
            _save_arrays(temporary / "best.npz", values)
        else:
            _take_over(before / "best.npz", temporary / "best.npz")
        text = json.dumps(dataclasses.asdict(state))
        (temporary / "state.json").write_text(text, encoding="utf-8")
        _sync(temporary)
    for path in folder.iterdir():  # the one before, and what a killed process left unfinished
        if path.name != f"epoch-{state.epoch:04d}":
            shutil.rmtree(path)


def read_state(checkpoint: pathlib.Path | None) -> State:
    """Returns the stored State, or a fresh one where no epoch has been finished."""
    if checkpoint is None:
        return State()
    try:
        return State(**json.loads((checkpoint / "state.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"The checkpoint {checkpoint} is damaged: {error}. Remove it to start the run again.") from None


def restore(checkpoint: pathlib.Path, state: State, model, average) -> None:
    """Puts the stored arrays into `model`, its built optimizer and `average`."""
    import keras

    _load_arrays(checkpoint / "model.npz", _variables(model))
    _load_arrays(checkpoint / "optimizer.npz", model.optimizer.variables)
    if average is not None:
        average.values = [keras.ops.convert_to_tensor(array) for array in _arrays(checkpoint / "average.npz")]
        average.num_updates = state.num_updates


def load_best(checkpoint: pathlib.Path, model) -> None:
    """Puts the weights of the best epoch into `model`."""
    _load_arrays(checkpoint / "best.npz", model.weights)


def _variables(model) -> list:
    """Returns the weights and the states of random generators (dropout, stochastic depth)."""
    metrics = {id(variable) for variable in model.metrics_variables}
    return [variable for variable in model.variables if id(variable) not in metrics]


def _save_arrays(path: pathlib.Path, values) -> None:
    np.savez(path, **{f"{number:05d}": _to_numpy(value) for number, value in enumerate(values)})


def _to_numpy(value) -> np.ndarray:
    import keras

    return keras.ops.convert_to_numpy(value)


def _arrays(path: pathlib.Path) -> list[np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return [archive[name] for name in sorted(archive.files)]


def _load_arrays(path: pathlib.Path, variables) -> None:
    arrays = _arrays(path)
    shapes = [tuple(array.shape) for array in arrays]
    if shapes != [tuple(variable.shape) for variable in variables]:
        raise RunError(f"{path} does not fit this model. The run was made by another version of kmed or Keras.")
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


def _take_over(old: pathlib.Path, new: pathlib.Path) -> None:
    """Makes `new` the same file as `old`: a hard link where the file system has them, else a copy."""
    try:
        os.link(old, new)
    except OSError:
        shutil.copyfile(old, new)


def _sync(folder: pathlib.Path) -> None:
    """Forces the files to the disk, so that a power cut after the rename finds them whole."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
