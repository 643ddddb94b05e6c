"""The series of several workers as one: the same names, types and labels as of one process. Pure.

Rules:
- Counters and histograms are added, those of workers that have ended too. Gauges are of living workers alone, and are
  added unless `GAUGES` says otherwise.
- The instant since which something is counted is the earliest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from msgspec import Struct, msgpack
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.registry import Collector

from gateway.metrics import GAUGES

Labels = tuple[tuple[str, str], ...]
Values = dict[tuple[str, Labels], float]  # by sample


class Family(Struct, array_like=True):
    """A series of one process, with all its labels."""

    name: str
    kind: str
    text: str
    samples: list[tuple[str, Labels, float]]


Counted = list[Family]
_decoder = msgpack.Decoder(Counted)


def render_counted(registry: CollectorRegistry) -> bytes:
    """Write what a process has counted."""
    return msgpack.encode(
        [
            Family(
                metric.name,
                metric.type,
                metric.documentation,
                [(sample.name, tuple(sample.labels.items()), sample.value) for sample in metric.samples],
            )
            for metric in registry.collect()
        ]
    )


def parse_counted(body: bytes) -> Counted:
    """Read what a process has counted."""
    return _decoder.decode(body)


def add(parts: Iterable[Counted]) -> Counted:
    """Make one of several."""
    families: dict[str, tuple[Family, Values]] = {}
    for part in parts:
        for family in part:
            _, values = families.setdefault(family.name, (family, {}))
            for name, labels, value in family.samples:
                key = name, labels
                values[key] = _rule(family, name)((values[key], value)) if key in values else value
    return [
        Family(family.name, family.kind, family.text, [(*key, value) for key, value in values.items()])
        for family, values in families.values()
    ]


def _rule(family: Family, sample: str) -> Callable[[tuple[float, float]], float]:
    if family.kind == "gauge":
        return GAUGES.get(family.name, sum)
    return min if sample.endswith("_created") else sum


class Sums(Collector):
    """What is left of workers that have ended, and what the living have counted."""

    def __init__(self) -> None:
        self._ended: Counted = []
        self._living: Sequence[Counted] = ()

    def bury(self, counted: Counted) -> None:
        """Keep what a worker that has ended had counted."""
        self._ended = add((self._ended, [family for family in counted if family.kind != "gauge"]))

    def render(self, living: Sequence[Counted]) -> bytes:
        """Write the series for Prometheus."""
        self._living = living
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        """Give the series."""
        for family in add((*self._living, self._ended)):
            metric = Metric(family.name, family.text, family.kind)
            for name, labels, value in family.samples:
                metric.add_sample(name, dict(labels), value)
            yield metric
