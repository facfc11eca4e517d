"""`kmed.serve`: everything that is checked before the model is loaded, and then the service itself."""

import contextlib
import importlib.util
import socket
from collections.abc import Iterator

from kmed.deployment.service.limits import Limits
from kmed.deployment.service.tokens import read_token
from kmed.errors import ConfigError
from kmed.formats.registry import check_format
from kmed.runs import finished_run
from kmed.runtime import load_backend

_PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


def serve(
    run_folder,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    format: str = "keras",
    quantize: str = "none",
    batch_size: int = 32,
    max_body: int = 32,
    max_pixels: int = 50,
    max_pictures: int = 16,
    max_queue: int = 64,
    timeout: float = 30.0,
    token_file=None,
) -> None:
    """Answers requests over HTTP as `kmed predict` answers files, until SIGTERM or Ctrl-C.

    Routes: POST /v1/predict, GET /v1/model, /healthz, /metrics, /docs and /openapi.json. Pictures stay in memory;
    neither they nor names, addresses or answers are logged. At the end, what has been received is answered.

    A client must send "Authorization: Bearer TOKEN" if a token is set, by `token_file` or the environment variable
    KMED_TOKEN. /healthz needs none.

    Args:
      run_folder: what `kmed train` made.
      host: the address to listen on; other machines reach "0.0.0.0", but not the default.
      port: the port to listen on; 0: any free one, which is said.
      format, quantize: which of the run's files predicts, as for `kmed.classify_files`.
      batch_size: the most pictures, of all requests together, per step of the model.
      max_body: MB per request.
      max_pixels: million pixels per picture.
      max_pictures: pictures per request.
      max_queue: requests in hand at a time; a further one gets status 429.
      timeout: seconds for receiving a request, and again for answering it.
      token_file: a file that holds the token.
    Raises: RunError: there is no such run or export. ConfigError: a limit or the token is not legal, the address
      cannot be used, or a package of kmed[serve] is missing.
    """
    limits = Limits(max_body, max_pixels, max_pictures, max_queue, timeout)
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1. Received: batch_size={batch_size}.")
    check_format(format, quantize)
    token = read_token(token_file)
    _require_packages()
    run = finished_run(run_folder)
    with bound(host, port) as listener:
        load_backend()
        from kmed.deployment.service.server import run_server

        run_server(run, listener, limits, token, format=format, quantize=quantize, batch_size=batch_size)


def _require_packages() -> None:
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"The service needs {missing[0].replace('_', '-')}: pip install kmed[serve]")


@contextlib.contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """Yields a socket that is bound to an address, but does not listen yet: the model is loaded first.

    Raises: ConfigError: the address does not exist, is taken, or is not allowed.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"port must be 0 to 65535. Received: port={port}.")
    with contextlib.ExitStack() as stack:
        try:
            family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            listener = stack.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no address"
            raise ConfigError(
                f"Cannot listen on {host}, port {port}: {reason}. Give another host or port; port 0 takes any free one."
            ) from None
        yield listener
