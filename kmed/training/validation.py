"""The validation of each epoch: the averaged weights predict, in each of several processes for a part of the images."""

import contextlib
import pathlib

import keras
import numpy as np

from kmed.config import Config
from kmed.data.table import Table
from kmed.evaluation import inference
from kmed.training import processes
from kmed.training.callbacks import check_finite


class Validation:
    """The images of the validation split, which the model in training predicts after each epoch.

    Attributes:
      table: all of them.
      batches: a Pipeline of those that this process predicts.
    """

    def __init__(self, table: Table, config: Config, cache_dir: pathlib.Path):
        self.table, self._config = table, config
        self._own = table.take(processes.own_rows(len(table))) if processes.number() > 1 else table
        self.batches = inference.evaluation_pipeline(self._own, config, cache=config.data.cache, cache_dir=cache_dir)

    def predict(self, model, judge, average, epoch: int) -> np.ndarray:
        """Returns float32 (N, K), the averaged weights' predictions for all images; the model keeps its own weights.

        Args:
          model: the keras.Model in training.
          judge: a model of this process alone that predicts with the weights; None: the model in training does.
          average: the WeightAverage; None: the model's own weights predict.
          epoch: the epoch that has ended, from 1, which an error names.
        Raises: NonFiniteLoss: a prediction is not finite.
        """
        probs = processes.join_parts(self._predict_own(model, judge, average), len(self.table))
        check_finite(probs, epoch)
        return probs

    def _predict_own(self, model, judge, average) -> np.ndarray:
        if judge is None:
            with average.applied() if average is not None else contextlib.nullcontext():
                return inference.predict(model, self._own, self._config, pipeline=self.batches)
        values = average.values if average is not None else [weight.value for weight in model.weights]
        for weight, value in zip(judge.weights, values, strict=True):
            weight.assign(np.asarray(keras.ops.convert_to_numpy(value)))
        return inference.predict(judge, self._own, self._config, pipeline=self.batches)
