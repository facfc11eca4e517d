"""What the service refuses: too much at a time, too large, too slow. All of it is counted before it is held."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator

from kmed.errors import ConfigError

MB = 10**6
BODIES = 8  # bodies of the largest size that may be held at a time, however many requests share the room
RETRY_AFTER = 1  # seconds after which a client that was turned away may try again


class Refusal(Exception):
    """A request that gets an error instead of an answer.

    Attributes:
      status: of the HTTP response.
      reason: one word for the metrics.
      message: one sentence for the client. It never quotes the request, which may name a patient.
      headers: of the response.
    """

    def __init__(self, status: int, reason: str, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message
        self.headers = headers or {}


def busy(status: int, reason: str, message: str) -> Refusal:
    """Returns the refusal of a request that may be sent again."""
    return Refusal(status, reason, message, {"Retry-After": str(RETRY_AFTER)})


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of the service.

    Attributes:
      max_body: MB per request.
      max_pixels: million pixels per picture.
      max_pictures: pictures per request.
      max_queue: requests that are received, wait or are answered at a time.
      timeout: seconds for receiving a request, and again for answering it.
    Raises: ConfigError: a limit that is not above 0.
    """

    max_body: int = 32
    max_pixels: int = 50
    max_pictures: int = 16
    max_queue: int = 64
    timeout: float = 30.0

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{name} must be above 0. Received: {name}={value}.")

    @property
    def body_bytes(self) -> int:
        """The most bytes that the body of a request may have."""
        return self.max_body * MB


class Room:
    """How many requests, and how many bytes of their bodies, the service holds at present.

    It is used from the event loop alone, so it needs no lock.

    Attributes:
      requests: those that have been admitted and not yet answered.
      bytes: of their bodies.
    """

    def __init__(self, limits: Limits):
        self.limits = limits
        self.requests = 0
        self.bytes = 0

    @contextlib.contextmanager
    def admitted(self) -> Iterator["Held"]:
        """Holds the place of one request. Raises Refusal (429) if there is none."""
        if self.requests >= self.limits.max_queue:
            raise busy(429, "queue", f"{self.requests} requests are waiting, which is the most. Send this one again.")
        self.requests += 1
        held = Held(self)
        try:
            yield held
        finally:
            self.requests -= 1
            self.bytes -= held.bytes


class Held:
    """The bytes of one request's body."""

    def __init__(self, room: Room):
        self.room = room
        self.bytes = 0

    def grow(self, count: int) -> None:
        """Counts bytes that have been received. Raises Refusal: the body is too large (413), or all bodies are (429).

        Args:
          count: how many more.
        """
        limits = self.room.limits
        self.bytes += count
        self.room.bytes += count
        if self.bytes > limits.body_bytes:
            raise too_large(limits)
        if self.room.bytes > BODIES * limits.body_bytes:
            raise busy(
                429, "memory", "The requests in hand fill the memory that is meant for them. Send this one again."
            )


def too_large(limits: Limits) -> Refusal:
    """Returns the refusal of a body above the limit."""
    return Refusal(413, "body", f"The body of a request may have {limits.max_body} MB. Send fewer or smaller pictures.")
