"""A service around a run, for several tests: in this process, or on a socket in a thread of it."""

import contextlib
import io
import socket
import threading

import numpy as np
from PIL import Image

from kmed.deployment.service import server
from kmed.deployment.service.app import Service, create_app
from kmed.deployment.service.limits import Limits

TOKEN = "a-token-of-the-tests"  # noqa: S105


def make(run, format="keras", quantize="none", batch_size=4, **limits) -> Service:
    """Returns a service that compiles the model for few sizes."""
    return Service(run, format, quantize, batch_size, Limits(**limits))


@contextlib.contextmanager
def listening(service: Service, token=None):
    """Yields a server that listens in a thread of this process; its `address` is (host, port)."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # a client that is faster than the thread waits
        running = server.Server(server.configure(create_app(service, token), service.limits))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        running.address = listener.getsockname()
        try:
            yield running
        finally:
            running.should_exit = True
            thread.join()


def picture(seed=0, size=(40, 50), format="PNG", **options) -> bytes:
    """Returns a file with noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()
