"""Every series of the gateway, its help and its labels, on a registry that is handed in.

Rule: no label takes a value that consumers or the upstream choose freely. Routes are templates, outcomes are enums.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from gateway import __version__

PREFIX = "callbutton_gateway"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
COUNTS = (0, 1, 2, 5, 10, 20, 50, 100)
AGES = (15, 30, 60, 300, 900, 3600, 6 * 3600, 86400, 7 * 86400, 31 * 86400)


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

        self.requests = counter("requests", "Requests answered.", ("method", "route", "status"))
        self.request_seconds = histogram("request_seconds", "Time from request to end of answer.", ("route",))
        self.requests_in_flight = gauge("requests_in_flight", "Requests under way.")
        self.posts = counter("upstream_posts", "POSTs to the upstream, by what came of them.", ("outcome",))
        self.post_seconds = histogram("upstream_post_seconds", "Time from sending a POST to the end of its answer.")
        self.posts_in_flight = gauge("upstream_posts_in_flight", "POSTs under way, queue not counted.")
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
        self.build = gauge("build_info", "Always 1; the version is the label.", ("version",))
        self.build.labels(__version__).set(1)
