"""What the service counts of itself, as Prometheus text: no names, no photos, no addresses."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from pipeline.rows.rows import Row


class Metrics:
    """The counters of one service. `taken` tells how many requests it works on."""

    def __init__(self, taken: Callable[[], int]):
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        Gauge(
            "detector_requests_in_progress",
            "Scoring requests that are read, wait or are worked on",
            registry=registry,
        ).set_function(taken)
        self._requests = Counter(
            "detector_requests", "Requests answered", ["route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "detector_request_seconds",
            "Seconds from a request's first byte to its answer",
            ["route"],
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
            registry=registry,
        )
        self._rows = Counter(
            "detector_rows", "Rows by model and verdict", ["model", "verdict"], registry=registry
        )
        self._batch_photos = Histogram(
            "detector_batch_photos",
            "Photos scored together",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )
        self._batch_seconds = Histogram(
            "detector_batch_seconds", "Seconds that a batch took", registry=registry
        )

    def answered(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def scored(self, rows: list[Row]) -> None:
        for row in rows:
            self._rows.labels(row.model or "several", row.verdict).inc()

    def batch(self, photos: int, seconds: float) -> None:
        self._batch_photos.observe(photos)
        self._batch_seconds.observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)
