"""Spans of OpenTelemetry, where it is installed and the environment names a collector.

Rules:
- Until `start` nothing of OpenTelemetry is imported, and every span is None.
- Attributes are route templates, enums and counts: no client code, path, query or text of the upstream, and of an error
  its type alone.
- A flight has a span, under the request that sent it. A request that joins the flight links to that span.
- The destination is set by OpenTelemetry's own variables, `OTEL_EXPORTER_OTLP_ENDPOINT` first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING

from gateway import __version__

if TYPE_CHECKING:
    from opentelemetry.trace import Span as Span
    from opentelemetry.trace import Tracer

Headers = Iterable[tuple[bytes, bytes]]
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
UNTRACED: AbstractContextManager[None] = nullcontext()
_tracer: Tracer | None = None


def begin(name: str, *, links: Iterable[Span | None] = (), headers: Headers = ()) -> Span | None:
    """Begin a span under the current one, or under the caller's, which `headers` name."""
    if _tracer is None:
        return None
    from opentelemetry import propagate, trace

    carrier = {key.decode("latin-1"): value.decode("latin-1") for key, value in headers if key.startswith(b"trace")}
    joined = [trace.Link(other.get_span_context()) for other in links if other is not None]
    return _tracer.start_span(name, propagate.extract(carrier) if carrier else None, links=joined)


def within(span: Span | None) -> AbstractContextManager[Span | None]:
    """Make a span the current one for a block, which ends it."""
    return UNTRACED if span is None else _within(span)


def span(name: str, *, links: Iterable[Span | None] = (), headers: Headers = ()) -> AbstractContextManager[Span | None]:
    """Run a block in a span, which is None unless spans are recorded."""
    return UNTRACED if _tracer is None else within(begin(name, links=links, headers=headers))


@contextmanager
def _within(span: Span) -> Iterator[Span]:
    from opentelemetry import trace

    with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield span
        except BaseException as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(trace.StatusCode.ERROR)
            raise


def trace_id() -> str:
    """The id of the current trace; empty without one."""
    if _tracer is None:
        return ""
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""


def is_enabled(environment: Mapping[str, str]) -> bool:
    """Whether the environment names a collector."""
    return any(environment.get(name) for name in ENDPOINTS)


def check() -> None:
    """Raise ValueError without the extra `otel`."""
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        raise ValueError(f"{ENDPOINTS[0]} is set, but tracing is not installed: callbutton-gateway[otel] is")


def start() -> Callable[[], None]:
    """Record spans from now on; returns what exports the rest and stops. Raises ValueError without `otel`."""
    global _tracer
    check()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.version": __version__}).merge(Resource.create())
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": "callbutton-gateway"}))
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = provider.get_tracer("gateway", __version__)

    def stop() -> None:
        global _tracer
        _tracer = None
        provider.shutdown()

    return stop
