"""AdamW with warm-up and cosine decay, and a lower learning rate for a pretrained backbone."""

import keras

# Biases and the scales of normalisation are not decayed (He et al., 2019, "Bag of Tricks").
NOT_DECAYED = ["bias", "gamma", "beta", "cls_token", "pos_embed"]


@keras.saving.register_keras_serializable("kmed")
class AdamW(keras.optimizers.AdamW):
    """Keras' AdamW, clipped over all replicas, whose learning rate can be scaled for one part of the model.

    Keras clips the gradient of each replica before it adds them up, so that two devices train
    another model than one; here the sum is clipped.

    Args:
      backbone_factor: in (0, 1]; what the learning rate is multiplied by for all variables but the
        head's. The weight decay keeps the unscaled rate.
      head_prefix: the beginning of the paths of the head's variables.
      **kwargs: keras.optimizers.AdamW's.
    """

    def __init__(self, *args, backbone_factor: float = 1.0, head_prefix: str = "head/", **kwargs):
        super().__init__(*args, **kwargs)
        self.backbone_factor = backbone_factor
        self.head_prefix = head_prefix

    def build(self, variables):
        """Makes the moments of `variables`, and notes which of them learn at the scaled rate."""
        super().build(variables)
        self._factors = [
            1.0 if variable.path.startswith(self.head_prefix) else self.backbone_factor for variable in variables
        ]

    def update_step(self, gradient, variable, learning_rate):
        """Updates one variable, the backbone's at the scaled rate."""
        factor = self._factors[self._get_variable_index(variable)]
        super().update_step(gradient, variable, learning_rate if factor == 1.0 else learning_rate * factor)

    def _clip_gradients(self, grads):
        # On TensorFlow this is called a replica, before the sum: too early.
        return grads if keras.backend.backend() == "tensorflow" else super()._clip_gradients(grads)

    def _all_reduce_sum_gradients(self, grads_and_vars):
        grads, variables = zip(*super()._all_reduce_sum_gradients(grads_and_vars), strict=True)
        return list(zip(super()._clip_gradients(list(grads)), variables, strict=True))

    def get_config(self):
        """Returns the arguments that rebuild the optimizer."""
        own = {"backbone_factor": self.backbone_factor, "head_prefix": self.head_prefix}
        return {**super().get_config(), **own}


def make_optimizer(settings, steps_per_epoch: int) -> AdamW:
    """Returns the optimizer of a run.

    The learning rate rises linearly over `warmup_epochs` and then falls to zero along half a cosine
    (Loshchilov & Hutter, 2017), both counted in steps.

    Args:
      settings: `kmed.config.TrainConfig`.
      steps_per_epoch: training batches an epoch.
    """
    total = settings.epochs * steps_per_epoch
    warmup = min(round(settings.warmup_epochs * steps_per_epoch), total - 1)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else settings.learning_rate,
        decay_steps=total - warmup,
        warmup_target=settings.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    optimizer = AdamW(
        learning_rate=schedule,
        weight_decay=settings.weight_decay,
        global_clipnorm=settings.clip_norm or None,
        backbone_factor=settings.backbone_learning_rate,
    )
    optimizer.exclude_from_weight_decay(var_names=NOT_DECAYED)
    return optimizer
