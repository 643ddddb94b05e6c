"""Every series of the gateway, its help and its labels, on a given registry.

Rules:
- No label takes a value that consumers or the upstream choose freely. Routes are templates, outcomes are enums.
- Label values that are known beforehand are exported from the start, with 0: a rate misses the first event of a series
  that begins with it.
- Request metrics are plain numbers until a scrape (`RequestMetrics`): 2 µs a request, where labelled counters and a
  histogram of prometheus_client take 4.2.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate, product

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Metric,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from gateway import __version__

PREFIX = "callbutton_gateway"
BATCH_SIZE = 500  # requests that are counted together
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
COUNTS = (0, 1, 2, 5, 10, 20, 50, 100)
AGES = (15, 30, 60, 300, 900, 3600, 6 * 3600, 86400, 7 * 86400, 31 * 86400)
# Known label values.
OUTCOMES = ("ok", "unauthorized", "rejected", "error", "malformed", "unreachable", "timeout", "cancelled")
DROP_REASONS = ("full", "late", "unwanted", "circuit-open")
REPAIRS = ("illegal_character", "unknown_charset")
CERTAINTIES = ("inferred", "assumed")  # exact times are not counted
LOOKUPS = ("hit", "partial", "miss")
SHARED_LOOKUPS = ("found", "miss", "unavailable", "unreadable")
OPERATIONS = ("lookup", "store", "claim", "release", "renew", "wait", "spent")
ERRORS = ("timeout", "connection", "refused", "skew", "bug")
REFUSALS = ("no credential", "unknown key", "expired key", "client", "scope", "rate", "exports")  # tokens have more


class RequestMetrics(Collector):
    """Requests answered, their durations, and how many are in flight.

    Requests are noted in a list, counted in batches, and become series at a scrape.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.in_flight = 0
        self.repeats = 0
        self._uncounted: list[tuple[str, str, int, float, str]] = []
        self._by_consumer: dict[tuple[str, int], int] = {}
        self._by_route: dict[tuple[str, str, int], int] = {}
        self._buckets: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}
        registry.register(self)

    def add(self, method: str, route: str, status: int, seconds: float, consumer: str = "") -> None:
        """Count one request; `consumer` is the label of an authenticated one."""
        self._uncounted.append((method, route, status, seconds, consumer))
        if len(self._uncounted) >= BATCH_SIZE:
            self._count()

    def _count(self) -> None:
        uncounted, self._uncounted = self._uncounted, []
        for method, route, status, seconds, consumer in uncounted:
            if consumer:
                by_consumer = consumer, status
                self._by_consumer[by_consumer] = self._by_consumer.get(by_consumer, 0) + 1
            key = method, route, status
            self._by_route[key] = self._by_route.get(key, 0) + 1
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
        for (method, route, status), count in self._by_route.items():
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
            f"{PREFIX}_consumer_requests", "Requests answered, by consumer.", labels=("consumer", "status")
        )
        for (consumer, status), count in self._by_consumer.items():
            asked.add_metric((consumer, str(status)), count)
        yield asked
        yield GaugeMetricFamily(f"{PREFIX}_requests_in_flight", "Requests in flight.", self.in_flight)
        yield CounterMetricFamily(f"{PREFIX}_repeats", "Answers served from the response cache.", self.repeats)


class Metrics:
    """The series, by attribute."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

        def counter(name: str, text: str, **labels: Iterable[str]) -> Counter:
            """A counter with the known values of each label."""
            made = Counter(f"{PREFIX}_{name}", text, tuple(labels), registry=registry)
            for values in product(*labels.values()) if labels else ():
                made.labels(*values)
            return made

        def histogram(
            name: str, text: str, labels: tuple[str, ...] = (), buckets: tuple[float, ...] = SECONDS
        ) -> Histogram:
            return Histogram(f"{PREFIX}_{name}", text, labels, registry=registry, buckets=buckets)

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"{PREFIX}_{name}", text, labels, registry=registry)

        self.requests = RequestMetrics(registry)
        self.posts = counter("upstream_posts", "POSTs to the upstream, by outcome.", outcome=OUTCOMES)
        self.post_seconds = histogram("upstream_post_seconds", "Time from sending a POST to the end of its answer.")
        self.posts_in_flight = gauge("upstream_posts_in_flight", "POSTs in flight, queue not counted.")
        self.queue = gauge("upstream_queue_length", "POSTs that wait for a slot.")
        self.limit = gauge("upstream_limit", "POSTs that may be in flight at present.")
        self.circuit = gauge("upstream_circuit_state", "The circuit breaker: 0 closed, 1 half-open, 2 open.")
        self.healthy = gauge("upstream_healthy", "1 if the last POST was answered, whatever the answer; 0 if not.")
        self.healthy.set(1)
        self.retries = counter("upstream_retries", "POSTs sent a second time.")
        self.dropped = counter("upstream_dropped", "POSTs that were not sent.", reason=DROP_REASONS)
        self.reply_bytes = counter("upstream_reply_bytes", "Bytes of replies read, decompressed.")
        self.calls_translated = counter("calls_translated", "Calls translated from XML.")
        self.calls_unreadable = counter("calls_unreadable", "Calls left out: no id, or no readable StartTime.")
        self.unknown_elements = counter("unknown_elements", "Elements that the protocol document does not know.")
        self.status_ignored = counter("status_flag_ignored", "Replies without status though it was asked for.")
        self.ambiguous_times = counter(
            "ambiguous_times", "Wall times in a fold or gap.", certainty=("inferred", "assumed")
        )
        self.repairs = counter("text_repairs", "Repairs to the text of replies.", repair=REPAIRS)
        self.lookups = counter(
            "cache_lookups", "Windows looked up in the cache, by client.", result=("hit", "partial", "miss")
        )
        self.cache_bytes = gauge("cache_bytes", "Bytes that the cache holds, estimated.")
        self.evictions = counter("cache_evictions", "Extents dropped to stay within the bound.")
        self.joined = counter("flights_joined", "Reads that joined a flight in progress.")
        self.batch_codes = histogram("batch_codes", "Client codes of a flight.", buckets=COUNTS)
        self.read_gaps = histogram("read_gaps", "Windows that a read had to fetch.", buckets=COUNTS)
        self.rows = counter("rows", "Calls that answers rest on, by where they were.", source=("ledger", "upstream"))
        self.stale_seconds = histogram("stale_seconds", "Seconds past freshness of stale answers.", buckets=AGES)
        self.lateness = histogram("lateness_seconds", "From a call's start to its first being seen.", buckets=AGES)
        self.skew = counter("clock_skew", "Extents dropped because they were sent in the future.")
        self.shared_up = gauge("cache_shared_up", "1 while the shared cache is asked, 0 while its circuit is open.")
        self.shared_lookups = counter("cache_shared_lookups", "Windows looked up in level 2.", result=SHARED_LOOKUPS)
        self.shared_seconds = histogram("cache_shared_seconds", "Time of a command to it.", ("operation",))
        self.shared_errors = counter("cache_shared_errors", "Commands that failed.", operation=OPERATIONS, error=ERRORS)
        self.refused = counter("refused", "Requests refused because of the consumer.", reason=REFUSALS)
        self.keys_file_broken = gauge("keys_file_broken", "1 while the keys file cannot be used and old keys stay.")
        self.issuer_fetches = counter("issuer_fetches", "Fetches of the OIDC issuer's keys.", outcome=("ok", "failed"))
        self.build = gauge("build_info", "Always 1; the version is the label.", ("version",))
        self.build.labels(__version__).set(1)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)

    def scrape(self) -> bytes:
        """The series of this process, for Prometheus."""
        return generate_latest(self.registry)
