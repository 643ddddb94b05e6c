"""Every series of the gateway, its help and its labels, on a registry that is handed in.

Rules:
- No label takes a value that consumers or the upstream choose freely. Routes are templates, outcomes are enums.
- What every request counts is gathered, and kept in plain numbers until somebody scrapes: a hit lasts less than a
  labelled counter.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from gateway import __version__

PREFIX = "callbutton_gateway"
TOGETHER = 500  # requests
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
COUNTS = (0, 1, 2, 5, 10, 20, 50, 100)
AGES = (15, 30, 60, 300, 900, 3600, 6 * 3600, 86400, 7 * 86400, 31 * 86400)


class RequestTally(Collector):
    """Requests answered, how long they took, and how many are under way."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.under_way = 0
        self.repeats = 0
        self._uncounted: list[tuple[str, str, int, float, str]] = []
        self._asked: dict[tuple[str, int], int] = {}
        self._answered: dict[tuple[str, str, int], int] = {}
        self._buckets: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}
        registry.register(self)

    def add(self, method: str, route: str, status: int, seconds: float, consumer: str = "") -> None:
        """Count one request; `consumer` is the label of one that is known."""
        self._uncounted.append((method, route, status, seconds, consumer))
        if len(self._uncounted) >= TOGETHER:
            self._count()

    def _count(self) -> None:
        uncounted, self._uncounted = self._uncounted, []
        for method, route, status, seconds, consumer in uncounted:
            if consumer:
                asked = consumer, status
                self._asked[asked] = self._asked.get(asked, 0) + 1
            key = method, route, status
            self._answered[key] = self._answered.get(key, 0) + 1
            buckets = self._buckets.get(route)
            if buckets is None:
                buckets = self._buckets[route] = [0] * (len(SECONDS) + 1)
                self._sums[route] = 0.0
            buckets[bisect_left(SECONDS, seconds)] += 1
            self._sums[route] += seconds

    def collect(self) -> Iterator[Metric]:
        """Give the series."""
        self._count()
        answered = CounterMetricFamily(f"{PREFIX}_requests", "Requests answered.", labels=("method", "route", "status"))
        for (method, route, status), count in self._answered.items():
            answered.add_metric((method, route, str(status)), count)
        yield answered
        seconds = HistogramMetricFamily(
            f"{PREFIX}_request_seconds", "Time from request to end of answer.", labels=("route",)
        )
        edges = [*map(floatToGoString, SECONDS), "+Inf"]
        for route, buckets in self._buckets.items():
            counts = zip(edges, accumulate(buckets), strict=True)
            seconds.add_metric((route,), [(edge, float(count)) for edge, count in counts], self._sums[route])
        yield seconds
        asked = CounterMetricFamily(
            f"{PREFIX}_consumer_requests", "Requests answered, by who asked.", labels=("consumer", "status")
        )
        for (consumer, status), count in self._asked.items():
            asked.add_metric((consumer, str(status)), count)
        yield asked
        yield GaugeMetricFamily(f"{PREFIX}_requests_in_flight", "Requests under way.", self.under_way)
        yield CounterMetricFamily(
            f"{PREFIX}_repeats", "Answers that went out again as the bytes they were.", self.repeats
        )


class Metrics:
    """The series, by attribute."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"{PREFIX}_{name}", text, labels, registry=registry)

        def histogram(
            name: str, text: str, labels: tuple[str, ...] = (), buckets: tuple[float, ...] = SECONDS
        ) -> Histogram:
            return Histogram(f"{PREFIX}_{name}", text, labels, registry=registry, buckets=buckets)

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"{PREFIX}_{name}", text, labels, registry=registry)

        self.requests = RequestTally(registry)
        self.posts = counter("upstream_posts", "POSTs to the upstream, by what came of them.", ("outcome",))
        self.post_seconds = histogram("upstream_post_seconds", "Time from sending a POST to the end of its answer.")
        self.posts_in_flight = gauge("upstream_posts_in_flight", "POSTs under way, queue not counted.")
        self.queue = gauge("upstream_queue_length", "POSTs that wait for a place.")
        self.limit = gauge("upstream_limit", "POSTs that may be under way at present.")
        self.circuit = gauge("upstream_circuit_state", "The breaker: 0 closed, 1 probing, 2 open.")
        self.healthy = gauge("upstream_healthy", "1 if the last POST was answered, whatever the answer; 0 if not.")
        self.healthy.set(1)
        self.retries = counter("upstream_retries", "POSTs sent once more.")
        self.dropped = counter("upstream_dropped", "POSTs dropped unsent.", ("reason",))
        self.reply_bytes = counter("upstream_reply_bytes", "Bytes of replies read, decompressed.")
        self.calls_translated = counter("calls_translated", "Calls translated from XML.")
        self.calls_unreadable = counter("calls_unreadable", "Calls left out: no id, or no readable StartTime.")
        self.unknown_elements = counter("unknown_elements", "Elements that the protocol document does not know.")
        self.status_ignored = counter("status_flag_ignored", "Replies without status though it was asked for.")
        self.ambiguous_times = counter("ambiguous_times", "Wall times in a fold or gap.", ("certainty",))
        self.repairs = counter("text_repairs", "Repairs to the text of replies.", ("repair",))
        self.lookups = counter("cache_lookups", "Windows looked up in the ledger, a client each.", ("result",))
        self.cache_bytes = gauge("cache_bytes", "Bytes that the ledger holds, estimated.")
        self.evictions = counter("cache_evictions", "Extents dropped to stay within the bound.")
        self.joined = counter("flights_joined", "Reads that joined a flight under way.")
        self.batch_codes = histogram("batch_codes", "Client codes of a flight.", buckets=COUNTS)
        self.read_gaps = histogram("read_gaps", "Windows that a read had to fetch.", buckets=COUNTS)
        self.rows = counter("rows", "Calls that answers rest on, by where they were.", ("source",))
        self.stale_seconds = histogram("stale_seconds", "Seconds past freshness of stale answers.", buckets=AGES)
        self.lateness = histogram("lateness_seconds", "From a call's start to its first being seen.", buckets=AGES)
        self.skew = counter("clock_skew", "Extents dropped because they were sent in the future.")
        self.shared_up = gauge("cache_shared_up", "1 while the shared cache is asked, 0 while its circuit is open.")
        self.shared_lookups = counter("cache_shared_lookups", "Windows looked up in the shared cache.", ("result",))
        self.shared_seconds = histogram("cache_shared_seconds", "Time of a command to it.", ("operation",))
        self.shared_errors = counter("cache_shared_errors", "Commands that failed.", ("operation", "error"))
        self.refused = counter("refused", "Requests refused for who asked.", ("reason",))
        self.keys_file_broken = gauge("keys_file_broken", "1 while the keys file cannot be used and old keys stay.")
        self.issuer_fetches = counter("issuer_fetches", "Fetches of the OIDC issuer's keys.", ("outcome",))
        self.build = gauge("build_info", "Always 1; the version is the label.", ("version",))
        self.build.labels(__version__).set(1)

    def scrape(self) -> bytes:
        """The series of this process, for Prometheus."""
        return generate_latest(self.registry)
