"""What stands before every route: token, size of headers, a line in the log, and an answer whatever goes wrong."""

import pathlib
import time
import traceback

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kmed.deployment.service.limits import Refusal
from kmed.deployment.service.metrics import Metrics
from kmed.deployment.service.tokens import is_token
from kmed.progress import say, warn

OPEN = ("/healthz",)  # the paths that need no token: a load balancer has none
LARGEST_HEADERS = 16_384  # bytes
OTHER = "other"  # stands for paths that do not exist: they may hold anything, a patient's name too


def refused(refusal: Refusal) -> JSONResponse:
    """Returns the response to a request that is refused."""
    return JSONResponse({"error": refusal.message}, refusal.status, refusal.headers)


class Guard:
    """ASGI middleware around the whole application.

    A line in the log has the method, the route, the status and the time: no address, no header, no name, and of a path
    only whether it is one of the service's own.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: tuple[str, ...], token: str | None):
        self._app, self._metrics, self._routes = app, metrics, routes
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is None:
                await self._app(scope, receive, noting)
            else:
                self._metrics.refused(refusal.reason)
                await refused(refusal)(scope, receive, noting)
        except Exception as error:  # a defect: its message may quote the request, so only its place is logged
            warn(f"Warning: a request failed: {_place(error)}")
            if not status:
                await refused(_DEFECT)(scope, receive, noting)
        route = scope["path"] if scope["path"] in self._routes else OTHER
        seconds = time.perf_counter() - start
        self._metrics.request(route, status, seconds)
        method = scope["method"] if scope["method"] in _METHODS else OTHER
        say(f"{method} {route} {status} {seconds * 1000:.1f} ms")

    def _refusal(self, scope: Scope) -> Refusal | None:
        """Returns why a request does not reach its route; None: it does."""
        if scope["http_version"] not in ("1.0", "1.1"):
            return _VERSION
        size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        if size + sum(len(name) + len(value) for name, value in scope["headers"]) > LARGEST_HEADERS:
            return _HEADERS  # h11 has a limit of its own, but only for headers that come in several pieces
        if self._token is None or scope["path"] in OPEN:
            return None
        sent = [value for name, value in scope["headers"] if name == b"authorization"]
        return None if len(sent) == 1 and is_token(sent[0], self._token) else _NO_TOKEN


_METHODS = ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH")
_VERSION = Refusal(400, "version", "The service speaks HTTP/1.1.")
_HEADERS = Refusal(431, "headers", f"The path and headers of a request may have {LARGEST_HEADERS} bytes.")
_NO_TOKEN = Refusal(
    401, "token", "Send the service's token: Authorization: Bearer TOKEN.", {"WWW-Authenticate": "Bearer"}
)
_DEFECT = Refusal(500, "defect", "The service failed at this request; its log names the place.")


def _place(error: BaseException) -> str:
    """Returns the type of an error and where it was raised, without its message."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" in {pathlib.Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}."
