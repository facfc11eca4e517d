"""A process that runs training steps of one model on request, for `scripts/benchmark.py train`.

It is started with a description in JSON, prints one line of JSON when it is ready, then reads a number of
steps from each line of its input and answers with the seconds they took. It imports only what the chosen
framework needs, so that PyTorch and timm can have an environment of their own:

    echo 30 | python scripts/training_step.py \\
        '{"framework": "kmed", "model": "resnet18", "size": [60, 80], "dtype": "auto", "options": {}}'
"""

import functools
import itertools
import json
import sys
import time

BATCH_SIZE = 32
NUM_CLASSES = 4


def main():
    """Reads what to run, builds it, and runs it whenever a number of steps arrives."""
    wanted = json.loads(sys.argv[1])
    run, facts = FRAMEWORKS[wanted["framework"]](wanted)
    run(3)  # compiles the step, and fills the allocators
    answer(facts)
    for line in sys.stdin:
        start = time.perf_counter()
        run(int(line))
        answer({"seconds": time.perf_counter() - start})


def answer(message: dict) -> None:
    """Writes one line of JSON."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def kmed_steps(wanted: dict):
    """Returns (run, {"dtype", "versions"}): `run(steps)` trains as `kmed train` does, except for the input.

    Args:
      wanted: "model", "size" (height, width), "dtype" (a policy or "auto") and "options" of `build_model`.
    """
    from kmed import build_model, runtime

    runtime.load_backend()
    from kmed.config import Config
    from kmed.models.registry import choose_dtype
    from kmed.training.callbacks import StopOnNonFiniteLoss
    from kmed.training.ema import WeightAverage
    from kmed.training.loop import start_phase

    config = Config(task="multiclass")
    dtype = choose_dtype(wanted["model"], wanted["dtype"])
    with runtime.dtype_policy(dtype):
        model = build_model(wanted["model"], NUM_CLASSES, image_size=wanted["size"], **wanted["options"])
        start_phase(model, config, drawn_table(), epoch=0, steps=10**6)
    callbacks = [WeightAverage(model.weights, config.train.ema), StopOnNonFiniteLoss()]
    return keras_runner(model, wanted, callbacks), {"dtype": dtype, "versions": runtime.versions()}


def keras_steps(wanted: dict):
    """Returns the same for Keras: the same architecture with Keras' own layers, optimizer and weight average."""
    from kmed import build_model, runtime

    runtime.load_backend()
    import keras

    with runtime.dtype_policy(wanted["dtype"]):
        if wanted["model"] == "vit":
            model = keras_vit(wanted["size"], **wanted["options"])
        else:
            model = build_model(wanted["model"], NUM_CLASSES, image_size=wanted["size"], batch_norm="keras")
        optimizer = keras.optimizers.AdamW(1e-3, weight_decay=0.05, global_clipnorm=1.0, use_ema=True)
        model.compile(optimizer, "categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    return keras_runner(model, wanted, []), {"dtype": wanted["dtype"], "versions": runtime.versions()}


def keras_vit(size, dropout: float = 0.3, attention_dropout: float = 0.3):
    """Returns kmed's vision transformer, written in the usual way with `keras.layers.MultiHeadAttention`."""
    import keras
    from keras import layers

    images = keras.Input((*size, 3))
    x = layers.Rescaling(1 / 255)(images)
    x = layers.Conv2D(128, 8, 8)(x)
    x = layers.Reshape((-1, 128))(x)  # (N, P, 128)
    x = layers.ZeroPadding1D((1, 0))(x)  # a place for the class token, whose value is its position
    positions = layers.Embedding(x.shape[1], 128)(keras.ops.arange(x.shape[1]))
    x = layers.Dropout(dropout)(x + positions)
    for _ in range(6):
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        y = layers.MultiHeadAttention(16, 8, dropout=attention_dropout)(y, y)
        x = x + layers.Dropout(dropout)(y)
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        y = layers.Dropout(dropout)(layers.Dense(512, activation="gelu")(y))
        x = x + layers.Dropout(dropout)(layers.Dense(128)(y))
    x = layers.LayerNormalization(epsilon=1e-6)(x)[:, 0]
    return keras.Model(images, layers.Dense(NUM_CLASSES, activation="softmax", dtype="float32")(x))


def keras_runner(model, wanted: dict, callbacks: list):
    """Returns a function that trains the model on one batch, repeated."""
    import keras
    import numpy as np

    rng = np.random.default_rng(0)
    size = wanted.get("batch_size", BATCH_SIZE)
    images = keras.ops.convert_to_tensor(rng.integers(0, 256, (size, *wanted["size"], 3)), "float32")
    labels = keras.ops.one_hot(rng.integers(0, NUM_CLASSES, size), NUM_CLASSES)
    batches = repeated(images, labels)
    return lambda steps: model.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0, callbacks=callbacks)


def repeated(images, labels):
    """Returns one batch without end, on the device, in the form that the backend's `fit` takes."""
    import keras

    if keras.backend.backend() != "tensorflow":
        return ((images, labels) for _ in itertools.count())
    import tensorflow as tf

    batches = tf.data.Dataset.from_tensors((images, labels)).repeat()
    # With tf.data's autotuning, releasing the iterator at the end of `fit` waits up to a second for a timer.
    settings = tf.data.Options()
    settings.autotune.enabled = False
    return batches.with_options(settings)


def drawn_table():
    """Returns a Table of four classes without pictures, with all that a training step needs to know of its data."""
    import numpy as np
    import pandas as pd

    from kmed.data.table import Table

    rows = pd.DataFrame({name: list("abcd") for name in ("path", "group", "cluster", "split")})
    return Table(rows, np.eye(NUM_CLASSES, dtype=np.float32), tuple("abcd"), "multiclass", "drawn")


def torch_steps(wanted: dict, same_work: bool = False, compiled: bool = False):
    """Returns the same for PyTorch: timm's model in channels-last with PyTorch's fused AdamW, on a GPU if there is one.

    `same_work` adds the other parts of kmed's step: clipping by the norm of all gradients, an average of weights and
    statistics, and the accuracy, but not the F1. `compiled` uses torch.compile.
    """
    import timm
    import torch
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    torch.manual_seed(0)
    device, size = "cuda" if torch.cuda.is_available() else "cpu", wanted.get("batch_size", BATCH_SIZE)
    model = timm_model(wanted).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    images = torch.randint(0, 256, (size, 3, *wanted["size"])).float() / 255
    images = images.to(device, memory_format=torch.channels_last)
    labels = torch.randint(0, NUM_CLASSES, (size,)).to(device)
    bfloat16 = wanted["dtype"] == "mixed_bfloat16"
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99), use_buffers=True) if same_work else None
    right = torch.zeros((), device=device)
    predict = torch.compile(model) if compiled else model

    def run(steps: int):
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
                logits = predict(images)
            torch.nn.functional.cross_entropy(logits.float(), labels).backward()
            if same_work:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
            optimizer.step()
            if same_work:
                average.update_parameters(model)
                right.add_((logits.argmax(1) == labels).sum())
        if device == "cuda":
            torch.cuda.synchronize()  # its steps are only queued so far

    versions = {"torch": torch.__version__, "timm": timm.__version__}
    return run, {"dtype": wanted["dtype"], "versions": versions}


def timm_model(wanted: dict):
    """Returns timm's counterpart of a model of kmed, with the same drop rates."""
    import timm

    if wanted["model"] == "vit":
        rate, attention_rate = (wanted["options"].get(name, 0.3) for name in ("dropout", "attention_dropout"))
        drops = {"pos_drop_rate": rate, "proj_drop_rate": rate, "attn_drop_rate": attention_rate}
        return timm.models.VisionTransformer(
            img_size=tuple(wanted["size"]), patch_size=8, embed_dim=128, depth=6, num_heads=16, num_classes=4, **drops
        )
    if wanted["model"] == "efficientnetb0":
        drops = {"drop_rate": 0.2, "drop_path_rate": 0.06}
        return timm.create_model("efficientnet_b0", num_classes=NUM_CLASSES, **drops)
    if wanted["model"].startswith("efficientnetlite"):
        number = wanted["model"].removeprefix("efficientnetlite")
        return timm.create_model(f"efficientnet_lite{number}", num_classes=NUM_CLASSES, drop_rate=0.2)
    return timm.create_model(wanted["model"], num_classes=NUM_CLASSES)


FRAMEWORKS = {
    "kmed": kmed_steps,
    "keras": keras_steps,
    "torch": torch_steps,
    "torch, same work": functools.partial(torch_steps, same_work=True),
    "torch, compiled": functools.partial(torch_steps, compiled=True),
}

if __name__ == "__main__":
    main()
