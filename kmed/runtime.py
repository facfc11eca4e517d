"""Seed, dtype policy, devices and versions: the only module that changes the process's global state."""

import contextlib
import importlib.metadata
import importlib.util
import logging
import os
import pathlib
import platform
import random
import shlex
import signal
import sys
import tempfile
import threading

import numpy as np

from kmed.errors import ConfigError

PACKAGES = ("kmed", "keras", "tensorflow", "jax", "keras-hub", "numpy", "scikit-learn", "pillow")


def load_backend() -> None:
    """Imports Keras and its backend, and hides the start-up log that TensorFlow writes past Python's streams.

    If TensorFlow is not installed but JAX is, Keras runs on JAX, unless KERAS_BACKEND says otherwise.

    Raises: ConfigError: the backend is not installed.
    """
    choose_backend()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with captured_stderr() as captured:
        try:
            num_gpus()  # looks for devices, which writes messages too
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"Keras' backend cannot be imported: {error}. Install tensorflow, or jax with KERAS_BACKEND=jax."
            ) from None
        except BaseException:
            sys.stderr.write(captured())
            raise


def choose_backend() -> str:
    """Returns the name of the backend that Keras will take, or has taken, and settles it for this process."""
    if importlib.util.find_spec("tensorflow") is None and importlib.util.find_spec("jax") is not None:
        os.environ.setdefault("KERAS_BACKEND", "jax")
    return os.environ.get("KERAS_BACKEND") or "tensorflow"


def hide_retracing_warnings() -> None:
    """Hides TensorFlow's warning that a function is traced anew, where a process trains several models in turn."""
    logging.getLogger("tensorflow").addFilter(_is_not_of_retracing)


def _is_not_of_retracing(record: logging.LogRecord) -> bool:
    return "triggered tf.function retracing" not in record.getMessage()


@contextlib.contextmanager
def captured_stderr():
    """Captures what is written to file descriptor 2; yields a function that returns it.

    It is meant for native libraries that log past Python's streams. If the block raises an error, the captured text
    is lost unless the caller writes it out.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as file:

        def read() -> str:
            os.dup2(saved, 2)
            file.seek(0)
            return file.read().decode(errors="replace")

        os.dup2(file.fileno(), 2)
        try:
            yield read
        finally:
            os.dup2(saved, 2)
            os.close(saved)


class Terminated(KeyboardInterrupt):
    """SIGTERM was received, which a scheduler sends some seconds before it kills a process."""


@contextlib.contextmanager
def interrupted_by_sigterm():
    """Makes SIGTERM interrupt the block as Ctrl-C does, once: further ones do not disturb the clean-up.

    It has no effect outside the main thread, or if the program handles SIGTERM itself.
    """

    def stop(number, frame):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and Keras (and through it the backend) with `seed`."""
    import keras

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - third-party code may use the global generator
    keras.utils.set_random_seed(seed)


@contextlib.contextmanager
def dtype_policy(name: str):
    """Sets Keras' global dtype policy for the duration of a block."""
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def num_gpus() -> int:
    """Returns how many GPUs the backend sees."""
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return len(tf.config.list_physical_devices("GPU"))
    if keras.backend.backend() == "jax":
        import jax

        return sum(device.platform == "gpu" for device in jax.devices())
    return 0


def cpu_has_bfloat16() -> bool:
    """Returns whether the processor multiplies bfloat16 in hardware (AVX512-BF16, AMX or Arm's bf16)."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return False
    flags = set(cpuinfo.read_text(errors="replace").split())
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def distribution(devices: list[str] | None = None):
    """Returns what spreads each batch over several devices, or None for a single device.

    That is tf.distribute's MirroredStrategy on TensorFlow, and Keras' DataParallel on JAX.

    Args:
      devices: names such as ["GPU:0", "GPU:1"] or ["CPU:0", "CPU:1"]; None takes every GPU, and in a run of several
        processes every device of each.
    Raises: ConfigError: a device that does not exist, devices named in a run of several processes, or several devices
      on a backend that has neither.
    """
    import keras

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        names = [device.name.split(":", 1)[1].removeprefix("device:") for device in tf.config.list_logical_devices()]
        chosen = _choose_devices(devices, [name for name in names if name.split(":")[0] in ("CPU", "GPU")])
        return tf.distribute.MirroredStrategy(chosen) if len(chosen) > 1 else None
    if backend == "jax":
        import jax

        present = [name.upper() for name in keras.distribution.list_devices()]
        if jax.process_count() > 1:
            if devices:
                raise ConfigError(
                    f"train.devices cannot be chosen in a run of {jax.process_count()} processes, which uses every "
                    f"device of each. Received: {devices}. Leave it out."
                )
            chosen = present
        else:
            chosen = _choose_devices(devices, present)
        lower = [name.lower() for name in chosen]
        # Each process brings its own part of a batch, so Keras must not take a part of that once more.
        return keras.distribution.DataParallel(devices=lower, auto_shard_dataset=False) if len(chosen) > 1 else None
    if devices and len(devices) > 1:
        raise ConfigError(
            f"train.devices takes several devices only on TensorFlow and JAX. Received: {devices} on {backend}. "
            "Leave it out."
        )
    return None


def _choose_devices(devices: list[str] | None, present: list[str]) -> list[str]:
    """Returns the names that were asked for, or those of all GPUs. Raises ConfigError if one is not present."""
    chosen = devices or [name for name in present if name.startswith("GPU")]
    if missing := [name for name in chosen if name not in present]:
        raise ConfigError(f"train.devices names {missing[0]!r}, which does not exist. Available: {', '.join(present)}.")
    return chosen


def scope(strategy):
    """Returns the scope in which a strategy creates its variables; a context without effect for None."""
    return strategy.scope() if strategy is not None else contextlib.nullcontext()


def describe_device() -> str:
    """Returns the device that computations run on, such as "2 x NVIDIA A100" or "2 CPU cores (x86_64, bfloat16)"."""
    import keras

    if num_gpus():
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            names = [
                tf.config.experimental.get_device_details(device).get("device_name", "GPU")
                for device in tf.config.list_physical_devices("GPU")
            ]
        else:
            import jax

            names = [device.device_kind for device in jax.devices()]
        return f"{len(names)} x {names[0]}"
    return f"{num_cores()} CPU cores ({platform.machine()}{', bfloat16' if cpu_has_bfloat16() else ''})"


def num_cores() -> int:
    """Returns how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that affect results; missing packages are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def join_versions(found: dict[str, str]) -> str:
    """Returns versions as one string, as they are stored in a cell of a table.

    Example:
      >>> join_versions({"python": "3.11.7", "keras": "3.15.1"})
      'python=3.11.7 keras=3.15.1'
    """
    return " ".join(f"{name}={version}" for name, version in found.items())


def environment() -> dict:
    """Returns the content of a run's environment.json."""
    import keras

    return {
        "device": describe_device(),
        "backend": keras.backend.backend(),
        "platform": platform.platform(),
        "versions": versions(),
        "command": command_line(),
    }


def command_line() -> str:
    """Returns the command this process was started with, ready to be pasted into a shell."""
    program = pathlib.Path(sys.argv[0]).name
    return shlex.join(["kmed" if program == "__main__.py" else program, *sys.argv[1:]])
