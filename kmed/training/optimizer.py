"""AdamW with warm-up and cosine decay, and a lower learning rate for a pretrained backbone."""

import keras

# Weight decay leaves out biases and the scales of normalisation (He et al., 2019, "Bag of Tricks").
NOT_DECAYED = ["bias", "gamma", "beta", "cls_token", "pos_embed"]
# `layer_decay` treats each backbone as if it had so many blocks, so that one value suits shallow and deep ones.
NUM_BLOCKS = 12


@keras.saving.register_keras_serializable("kmed")
class AdamW(keras.optimizers.AdamW):
    """Keras' AdamW, clipped over all replicas, with a learning rate that can be lower for the backbone.

    Keras clips the gradient of each replica before it adds them up, so that two devices do not
    train the same model as one; here the sum is clipped.

    Args:
      backbone_factor: in (0, 1]; the learning rate of all variables except the head's is multiplied by
        it. The weight decay uses the unscaled rate.
      layer_decay: in (0, 1]; within the backbone, the rate falls from the last layer to the first as if there were
        twelve blocks, each of which learns at this factor of the rate of the block after it (Bao et al., 2022, BEiT).
      head_prefix: the beginning of the paths of the head's variables.
      **kwargs: those of keras.optimizers.AdamW.
    """

    def __init__(
        self, *args, backbone_factor: float = 1.0, layer_decay: float = 1.0, head_prefix: str = "head/", **kwargs
    ):
        super().__init__(*args, **kwargs)
        self.backbone_factor = backbone_factor
        self.layer_decay = layer_decay
        self.head_prefix = head_prefix

    def build(self, variables):
        """Makes the moments of `variables`, and records which of them learn at the scaled rate."""
        super().build(variables)
        depths = _relative_depths([variable.path for variable in variables], self.head_prefix)
        self._factors = [
            1.0 if depth is None else self.backbone_factor * self.layer_decay ** (NUM_BLOCKS * (1 - depth))
            for depth in depths
        ]

    def _get_current_learning_rate(self):
        # Keras asks the schedule for the rate of the present step, although the weights change only every few of them.
        if isinstance(self._learning_rate, keras.optimizers.schedules.LearningRateSchedule):
            return self._learning_rate(self.iterations)
        return super()._get_current_learning_rate()

    def update_step(self, gradient, variable, learning_rate):
        """Updates one variable; those of the backbone use the scaled rate."""
        index = self._get_variable_index(variable)
        if _on_tensorflow():
            self._fused_step(gradient, variable, index, *learning_rate)
        else:
            factor = self._factors[index]
            super().update_step(gradient, variable, learning_rate if factor == 1.0 else learning_rate * factor)

    # On TensorFlow one fused operation updates a variable and both of its moments in place. Keras composes the
    # update of about twenty operations, and computes the schedule again for each variable with weight decay.

    def _fused_step(self, gradient, variable, index: int, learning_rate, corrected_rate):
        """Decays and updates a tf.Variable.

        Args:
          learning_rate: that of the schedule, for the weight decay.
          corrected_rate: the same with Adam's bias correction, for the update.
        """
        import tensorflow as tf

        if self.weight_decay is not None and self._use_weight_decay(variable):
            variable.assign_sub(variable * (self.weight_decay * tf.cast(learning_rate, variable.dtype)))
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.zeros([], variable.dtype),  # no correction here: the rate is already corrected
            beta2_power=tf.zeros([], variable.dtype),
            lr=tf.cast(corrected_rate * self._factors[index], variable.dtype),
            beta1=tf.cast(self.beta_1, variable.dtype),
            beta2=tf.cast(self.beta_2, variable.dtype),
            epsilon=tf.cast(self.epsilon, variable.dtype),
            grad=tf.cast(gradient, variable.dtype),
        )

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        if _on_tensorflow():
            step = keras.ops.cast(self.iterations + 1, "float32")
            correction = keras.ops.sqrt(1 - self.beta_2**step) / (1 - self.beta_1**step)
            learning_rate = (learning_rate, learning_rate * correction)
        super()._backend_update_step(grads, trainable_variables, learning_rate)

    def _apply_weight_decay(self, variables):
        if not _on_tensorflow():  # there it is part of the step
            super()._apply_weight_decay(variables)

    def _clip_gradients(self, grads):
        # TensorFlow calls this once per replica, before the sum, which is too early.
        return grads if _on_tensorflow() else super()._clip_gradients(grads)

    def _all_reduce_sum_gradients(self, grads_and_vars):
        grads, variables = zip(*super()._all_reduce_sum_gradients(grads_and_vars), strict=True)
        return list(zip(self._clip_sum(list(grads)), variables, strict=True))

    def _clip_sum(self, grads: list) -> list:
        """Returns the gradients of all replicas together, clipped."""
        if not self.global_clipnorm:
            return super()._clip_gradients(grads)
        import tensorflow as tf

        return tf.clip_by_global_norm(grads, self.global_clipnorm)[0]  # one pass for the norm; Keras makes two

    def get_config(self):
        """Returns the arguments that rebuild the optimizer."""
        own = {"backbone_factor": self.backbone_factor, "layer_decay": self.layer_decay}
        return {**super().get_config(), **own, "head_prefix": self.head_prefix}


def _relative_depths(paths: list[str], head_prefix: str) -> list[float | None]:
    """Returns the depth of each variable's layer, from above 0 (the first) to 1 (the last); None for the head's."""
    layers = [None if path.startswith(head_prefix) else path.rpartition("/")[0] for path in paths]
    order = {layer: number for number, layer in enumerate(dict.fromkeys(filter(None, layers)), 1)}
    return [None if layer is None else order[layer] / len(order) for layer in layers]


def _on_tensorflow() -> bool:
    return keras.backend.backend() == "tensorflow"


def make_optimizer(settings, steps_per_epoch: int) -> AdamW:
    """Returns the optimizer of a run.

    The learning rate rises linearly over `warmup_epochs` and then falls to zero along half a cosine
    (Loshchilov & Hutter, 2017), both counted in updates: one per step, or one per `accumulate` steps.

    Args:
      settings: `kmed.config.TrainConfig`.
      steps_per_epoch: number of training batches per epoch.
    """
    total = max(settings.epochs * steps_per_epoch // settings.accumulate, 1)
    warmup = min(round(settings.warmup_epochs * steps_per_epoch / settings.accumulate), total - 1)
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
        gradient_accumulation_steps=settings.accumulate if settings.accumulate > 1 else None,
        backbone_factor=settings.backbone_learning_rate,
        layer_decay=settings.layer_decay,
    )
    optimizer.exclude_from_weight_decay(var_names=NOT_DECAYED)
    return optimizer
