"""The metrics of the gateway: names, help texts and labels.

Rules:
- No label has values that consumers or the upstream choose. Routes are templates, outcomes are enums.
- Series whose label values are known are exported from the start, with 0. Prometheus computes a rate from the increase
  between two samples, so it would miss the first event of a series that appears with it.
- Request metrics are plain numbers until a scrape (`RequestMetrics`): 2 µs a request, compared with 4.2 µs for labelled
  counters and a histogram of prometheus_client.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
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
BATCH_SIZE = 500  # requests that are counted together; bounds the memory between scrapes
# Buckets of histograms.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
COUNTS = (0, 1, 2, 5, 10, 20, 50, 100)
AGES = (15, 30, 60, 300, 900, 3600, 6 * 3600, 86400, 7 * 86400, 31 * 86400)  # seconds
# Known label values.
OUTCOMES = ("ok", "unauthorized", "rejected", "error", "malformed", "unreachable", "timeout", "cancelled")
DROP_REASONS = ("full", "late", "unwanted", "circuit-open")
REPAIRS = (
    "bare_ampersand",
    "byte_order_mark",
    "cesu_8",
    "html_reference",
    "illegal_character",
    "leading_space",
    "unknown_charset",
    "windows_1252",
)
CERTAINTIES = ("inferred", "assumed")  # not "exact", which almost every time is
LOOKUPS = ("hit", "partial", "miss")
SHARED_LOOKUPS = ("found", "miss", "unavailable", "unreadable")
CHANGES = ("upsert", "remove", "replace")
OPERATIONS = ("lookup", "store", "claim", "release", "renew", "wait", "spent")
ERRORS = ("timeout", "connection", "refused", "skew", "bug")
REFUSALS = (
    "no credential",
    "unknown key",
    "expired key",
    "client",
    "scope",
    "rate",
    "exports",
    "requests",
    "recordings",
    "unread",
    "several credentials",
    "no such kind",
    "too long",
    "link",
    "expired link",
    "issuer unreachable",
)  # auth/tokens.py adds the faults of tokens


class RequestMetrics(Collector):
    """Counts requests and measures their durations.

    Requests are collected in a list, counted in batches, and exported at a scrape.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.in_flight = 0
        self.repeats = 0
        self._uncounted: list[tuple[str, str, int, float, str]] = []
        self._by_consumer: defaultdict[tuple[str, int], int] = defaultdict(int)
        self._by_route: defaultdict[tuple[str, str, int], int] = defaultdict(int)
        self._buckets: defaultdict[str, list[int]] = defaultdict(lambda: [0] * (len(SECONDS) + 1))
        self._sums: defaultdict[str, float] = defaultdict(float)
        registry.register(self)

    def add(self, method: str, route: str, status: int, seconds: float, consumer: str = "") -> None:
        """Count a response. `consumer` is the label of an authenticated consumer, else empty."""
        self._uncounted.append((method, route, status, seconds, consumer))
        if len(self._uncounted) >= BATCH_SIZE:
            self._count()

    def _count(self) -> None:
        uncounted, self._uncounted = self._uncounted, []
        for method, route, status, seconds, consumer in uncounted:
            if consumer:
                self._by_consumer[consumer, status] += 1
            self._by_route[method, route, status] += 1
            self._buckets[route][bisect_left(SECONDS, seconds)] += 1
            self._sums[route] += seconds

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics for a scrape."""
        self._count()
        requests = CounterMetricFamily(f"{PREFIX}_requests", "Responses sent.", labels=("method", "route", "status"))
        for (method, route, status), count in self._by_route.items():
            requests.add_metric((method, route, str(status)), count)
        yield requests
        seconds = HistogramMetricFamily(
            f"{PREFIX}_request_seconds", "Time from the request to the end of the response.", labels=("route",)
        )
        edges = [*map(floatToGoString, SECONDS), "+Inf"]
        for route, buckets in self._buckets.items():
            counts = zip(edges, accumulate(buckets), strict=True)
            seconds.add_metric((route,), [(edge, float(count)) for edge, count in counts], self._sums[route])
        yield seconds
        by_consumer = CounterMetricFamily(
            f"{PREFIX}_consumer_requests", "Responses sent, by consumer.", labels=("consumer", "status")
        )
        for (consumer, status), count in self._by_consumer.items():
            by_consumer.add_metric((consumer, str(status)), count)
        yield by_consumer
        yield GaugeMetricFamily(f"{PREFIX}_requests_in_flight", "Requests in flight.", self.in_flight)
        yield CounterMetricFamily(f"{PREFIX}_repeats", "Responses served from the response cache.", self.repeats)


class Metrics:
    """Every metric, as an attribute."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

        def counter(name: str, text: str, **labels: Iterable[str]) -> Counter:
            """A counter, with a series for each known value of its labels."""
            created = Counter(f"{PREFIX}_{name}", text, tuple(labels), registry=registry)
            for values in product(*labels.values()) if labels else ():
                created.labels(*values)
            return created

        def histogram(
            name: str, text: str, labels: tuple[str, ...] = (), buckets: tuple[float, ...] = SECONDS
        ) -> Histogram:
            return Histogram(f"{PREFIX}_{name}", text, labels, registry=registry, buckets=buckets)

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"{PREFIX}_{name}", text, labels, registry=registry)

        self.requests = RequestMetrics(registry)
        self.posts = counter("upstream_posts", "POSTs to the upstream, by outcome.", outcome=OUTCOMES)
        self.post_seconds = histogram("upstream_post_seconds", "Time from sending a POST to the end of its reply.")
        self.posts_in_flight = gauge("upstream_posts_in_flight", "POSTs in flight, without the queue.")
        self.queue = gauge("upstream_queue_length", "POSTs in the queue.")
        self.limit = gauge("upstream_limit", "Adaptive limit of POSTs in flight.")
        self.circuit = gauge("upstream_circuit_state", "The circuit breaker: 0 closed, 1 half-open, 2 open.")
        self.healthy = gauge(
            "upstream_healthy",
            "1 if the upstream replied to the last POST; 0 after a failure that counts for all client codes, or if the "
            "gateway's address seems to be refused.",
        )
        self.healthy.set(1)
        self.retries = counter("upstream_retries", "POSTs sent again after a failure.")
        self.dropped = counter("upstream_dropped", "POSTs that were not sent.", reason=DROP_REASONS)
        self.reply_bytes = counter("upstream_reply_bytes", "Bytes of replies read, decompressed.")
        self.calls_translated = counter("calls_translated", "Calls translated from XML.")
        self.calls_of_unnameable_clients = counter(
            "calls_of_unnameable_clients",
            "Calls listed under client codes that no request can name; lists of all clients leave them out.",
        )
        self.calls_unreadable = counter("calls_unreadable", "Calls left out: no id, or no readable StartTime.")
        self.unknown_elements = counter("unknown_elements", "Elements that the protocol does not define.")
        self.status_ignored = counter("status_flag_ignored", "Replies without the requested status.")
        self.ambiguous_times = counter(
            "ambiguous_times", "Wall times repeated or skipped by a clock change.", certainty=CERTAINTIES
        )
        self.repairs = counter("text_repairs", "Repairs to the text of replies.", repair=REPAIRS)
        self.lookups = counter("cache_lookups", "Windows looked up in the cache, one for each client.", result=LOOKUPS)
        self.cache_bytes = gauge("cache_bytes", "Estimated size of all that GATEWAY_CACHE_BYTES bounds.")
        self.packings = counter(
            "cache_packings", "Days of a client that were packed to stay within GATEWAY_CACHE_BYTES."
        )
        self.evictions = counter(
            "cache_evictions", "Days of a client that were evicted to stay within GATEWAY_CACHE_BYTES."
        )
        self.joined = counter("flights_joined", "Reads that joined a flight in progress.")
        self.batch_codes = histogram("batch_codes", "Client codes in a flight.", buckets=COUNTS)
        self.read_gaps = histogram("read_gaps", "Gaps that a read had to fetch.", buckets=COUNTS)
        self.rows = counter("rows", "Calls read for responses, by source.", source=("ledger", "upstream"))
        self.stale_seconds = histogram("stale_seconds", "Time past freshness of stale responses.", buckets=AGES)
        self.lateness = histogram(
            "lateness_seconds", "Time from the start of a call to the first POST that returned it.", buckets=AGES
        )
        self.skew = counter("clock_skew", "Extents dropped because their POST lies in the future.")
        self.feed_waiting = gauge("feed_waiting", "Requests that wait for a change (`wait`).")
        self.feed_streams = gauge("feed_streams", "Open streams of server-sent events.")
        self.feed_changes = counter(
            "feed_changes", "Items of the change feed sent to consumers, by kind.", kind=CHANGES
        )
        self.feed_refreshes = counter(
            "feed_refreshes", "Refreshes for consumers that wait for changes.", outcome=("ok", "failed")
        )
        self.feed_seconds_behind = gauge(
            "feed_seconds_behind",
            "Age of the newest refresh of those clients that are furthest behind; 0 if no consumer waits for changes.",
        )
        self.shared_up = gauge(
            "cache_shared_up", "The fraction of the nodes of Redis that are used: their circuit breakers are closed."
        )
        self.shared_lookups = counter("cache_shared_lookups", "Windows looked up in Redis.", result=SHARED_LOOKUPS)
        self.shared_seconds = histogram("cache_shared_seconds", "Time of a command to Redis.", ("operation",))
        self.shared_errors = counter(
            "cache_shared_errors", "Failed commands to Redis.", operation=OPERATIONS, error=ERRORS
        )
        self.refused = counter(
            "refused", "Requests refused, by the reason: authentication, authorization or rate limit.", reason=REFUSALS
        )
        self.keys_file_broken = gauge(
            "keys_file_broken", "1 while the keys file is not valid and earlier keys are used."
        )
        self.key_expiry = gauge(
            "key_expiry_timestamp_seconds",
            "Time at which the last access key of a consumer expires, in seconds since 1970.",
            ("consumer",),
        )
        self.issuer_fetches = counter("issuer_fetches", "Fetches of the OIDC issuer's keys.", outcome=("ok", "failed"))
        self.build = gauge("build_info", "Always 1; the version is the label.", ("version",))
        self.build.labels(__version__).set(1)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)

    def scrape(self) -> bytes:
        """Render all metrics as text for Prometheus."""
        return generate_latest(self.registry)
