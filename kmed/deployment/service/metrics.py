"""What Prometheus reads at /metrics: counts and times, never a picture, a name or an address."""

from collections.abc import Callable

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from kmed.deployment.classify import Answer

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counters of one service.

    Attributes:
      num_requests: requests that got their response.
    """

    def __init__(self, waiting: Callable[[], int], in_hand: Callable[[], int]):
        """Registers the counters.

        Args:
          waiting: returns how many pictures wait for the model.
          in_hand: returns how many requests are being answered.
        """
        self.num_requests = 0
        registry = self._registry = CollectorRegistry()
        prometheus_client.ProcessCollector(registry=registry)
        self._requests = Counter("kmed_requests", "Requests by status.", ["route", "status"], registry=registry)
        self._seconds = Histogram(
            "kmed_request_seconds", "From the request's headers to its answer.", ["route"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._refused = Counter(
            "kmed_refused", "Requests that got no answer, by reason.", ["reason"], registry=registry
        )
        self._pictures = Counter("kmed_pictures", "Pictures, answered or unreadable.", ["result"], registry=registry)
        self._flagged = Counter("kmed_unlike_training", "Pictures unlike the training pictures.", registry=registry)
        self._found = Counter("kmed_found", "Pictures in which a class was found.", ["class_name"], registry=registry)
        self._batches = Histogram(
            "kmed_batch_pictures", "Pictures per batch of the model.", buckets=_COUNTS, registry=registry
        )
        self._model = Histogram(
            "kmed_batch_seconds", "The model's time per batch.", buckets=_SECONDS, registry=registry
        )
        waits = Gauge("kmed_waiting_pictures", "Pictures that wait for the model.", registry=registry)
        waits.set_function(waiting)
        held = Gauge("kmed_requests_in_hand", "Requests that are being answered.", registry=registry)
        held.set_function(in_hand)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Counts a request that got its response."""
        self.num_requests += 1
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def refused(self, reason: str) -> None:
        """Counts a request that was refused."""
        self._refused.labels(reason).inc()

    def answered(self, answers: list[Answer]) -> None:
        """Counts the answers to a request."""
        for answer in answers:
            self._pictures.labels("unreadable" if answer.error else "answered").inc()
            self._flagged.inc(bool(answer.unlike_training))
            for name in answer.found:
                self._found.labels(name).inc()

    def batch(self, count: int, seconds: float) -> None:
        """Counts a batch of the model."""
        self._batches.observe(count)
        self._model.observe(seconds)

    def text(self) -> bytes:
        """Returns everything in Prometheus' text format."""
        return prometheus_client.generate_latest(self._registry)
