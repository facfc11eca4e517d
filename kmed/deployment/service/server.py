"""The service on a socket, until SIGTERM or Ctrl-C; what has been received is answered before it ends."""

import asyncio
import ipaddress
import math
import signal
import socket

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol

from kmed.deployment.service.app import NOT_CLINICAL, Service, create_app
from kmed.deployment.service.guard import LARGEST_HEADERS
from kmed.deployment.service.limits import Limits
from kmed.progress import say, warn
from kmed.runs import Run

HEADERS_SECONDS = 10.0  # in which the headers of a request must have come
LINGER_SECONDS = 1.0  # after SIGTERM, in which a request that is on its way on an open connection is still taken
KEEP_ALIVE_SECONDS = 30  # between two requests on one connection


class Protocol(H11Protocol):
    """uvicorn's connection, with a limit for the time in which a request must come, and a gentler end."""

    body_seconds: float  # in which the body of a request must have come

    _phase: str | None = None  # what is awaited: "headers", "body" or nothing
    _clock: asyncio.TimerHandle | None = None
    _ending = False

    def connection_made(self, transport) -> None:  # noqa: D102 - of asyncio
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:  # noqa: D102
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc) -> None:  # noqa: D102
        self._stop_clock()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:  # noqa: D102 - of uvicorn
        super().on_response_complete()
        self._watch()
        if self._ending:  # this answer had begun when the end came
            self.loop.call_later(LINGER_SECONDS, self._close_if_idle)

    def shutdown(self) -> None:
        """Ends the connection after the request that is in hand, or that is on its way."""
        self._ending = True
        self._watch()
        self.loop.call_later(LINGER_SECONDS, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if self._is_idle():
            self.transport.close()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _watch(self) -> None:
        """Starts a clock if another part of a request is awaited than before."""
        if self._ending and self.cycle is not None and self.cycle.keep_alive and not self.cycle.response_started:
            # The client is told: it would else send its next request to a closed connection.
            self.cycle.keep_alive = False
            self.cycle.default_headers = [*self.cycle.default_headers, CLOSE_HEADER]
        phase = None
        if self.conn.their_state is h11.SEND_BODY:
            phase = "body"
        elif self.conn.their_state is h11.IDLE and (self.cycle is None or self.conn.trailing_data[0]):
            phase = "headers"  # of the first request, or of one that has begun
        if phase != self._phase:
            self._stop_clock()
            self._phase = phase
            if phase is not None:
                seconds = HEADERS_SECONDS if phase == "headers" else self.body_seconds
                self._clock = self.loop.call_later(seconds, self._too_slow)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _too_slow(self) -> None:
        if self._phase == "headers" and self.conn.our_state is h11.IDLE and not self.transport.is_closing():
            headers = [("Content-Length", "0"), ("Connection", "close")]
            self.transport.write(self.conn.send(h11.Response(status_code=408, headers=headers, reason=b"Timeout")))
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's server, which returns after SIGTERM or Ctrl-C instead of raising the signal again."""

    def __init__(self, config: uvicorn.Config, announcement: str = ""):
        """Stores what is said as soon as connections are taken, and not earlier."""
        super().__init__(config)
        self.announcement = announcement

    async def startup(self, sockets=None) -> None:
        """Begins to listen, and says so."""
        await super().startup(sockets)
        say(self.announcement)

    def handle_exit(self, sig: int, frame) -> None:
        """Ends the service in good order; a second Ctrl-C ends it at once."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def shutdown(self, sockets=None) -> None:
        """Answers what has been received."""
        say("Stopping: no new connections are taken, and what has been received is answered.")
        await super().shutdown(sockets)


def run_server(run: Run, listener: socket.socket, limits: Limits, token: str | None, **model) -> None:
    """Answers requests on a bound socket until SIGTERM or Ctrl-C.

    Args:
      run: a finished run.
      listener: where to listen.
      limits: what is refused.
      token: what clients must send; None: anyone may ask.
      model: format, quantize and batch_size, as for `kmed.serve`.
    """
    service = Service(run, limits=limits, **model)
    address, port = listener.getsockname()[:2]
    if token is None and not ipaddress.ip_address(address.split("%")[0]).is_loopback:
        warn(f"Warning: {address} is open to other machines, and no token is asked for: anyone may send pictures.")
    config = configure(create_app(service, token), limits)
    shown = f"[{address}]" if ":" in address else address
    announcement = f"Serving {run.folder} at http://{shown}:{port} (docs at /docs). {NOT_CLINICAL} Stop: Ctrl-C."
    Server(config, announcement).run(sockets=[listener])
    say(f"Stopped after {service.metrics.num_requests} requests.")


def configure(app: FastAPI, limits: Limits) -> uvicorn.Config:
    """Returns uvicorn's settings for the service: nothing of its own is logged."""
    return uvicorn.Config(
        app,
        http=_limited(limits),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil(2 * limits.timeout + HEADERS_SECONDS),
        h11_max_incomplete_event_size=LARGEST_HEADERS,
    )


def _limited(limits: Limits) -> type[Protocol]:
    class Limited(Protocol):
        body_seconds = limits.timeout + HEADERS_SECONDS  # the application gives up first, and says why

    return Limited
