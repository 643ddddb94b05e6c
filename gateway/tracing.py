"""Traces: where the time of a request went, across the flights that it shared with others.

Rules:
- Without `start` nothing of OpenTelemetry is imported, and a span is one shared object that does nothing.
- Attributes are route templates, enums and counts: no client code, path, query or text of the upstream, and of an error
  its type alone.
- A flight is a span of its own, under the request that sent it; who joins it has a link to it.
- Where spans go is said by OpenTelemetry's own variables, `OTEL_EXPORTER_OTLP_ENDPOINT` first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextvars import Context, copy_context
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from gateway import __version__

if TYPE_CHECKING:
    from opentelemetry.trace import Span as OtelSpan

Value = str | int | float | bool
Headers = Iterable[tuple[bytes, bytes]]
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Span:
    """A span that nobody looks at; what is traced is a subclass."""

    trace_id = ""
    context: Context | None = None  # for tasks that run within the span

    def note(self, attributes: Mapping[str, Value]) -> None:
        """Add attributes."""

    def end(self) -> None:
        """End it; for a span that was not entered."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        return None


UNTRACED = Span()
Begin = Callable[[str, Iterable[Span], Headers], Span]
_begin: Begin | None = None
_here: Callable[[], str] | None = None


def on() -> bool:
    """Whether anything is traced."""
    return _begin is not None


def span(name: str, *, links: Iterable[Span] = (), headers: Headers = ()) -> Span:
    """Begin a span under the one around, or under the caller's that `headers` tell of."""
    return UNTRACED if _begin is None else _begin(name, links, headers)


def here() -> str:
    """The id of the trace around; empty without one."""
    return "" if _here is None else _here()


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether the environment says where spans go."""
    return any(environment.get(name) for name in ENDPOINTS)


def check() -> None:
    """See that tracing can start. Raises ValueError without the extra `otel`."""
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        raise ValueError(f"{ENDPOINTS[0]} is set, but tracing is not installed: callbutton-gateway[otel] is")


def start() -> Callable[[], None]:
    """Trace from now on; gives what sends the rest and stops. Raises ValueError without the extra `otel`."""
    global _begin, _here
    check()
    from opentelemetry import context, propagate, trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.version": __version__}).merge(Resource.create())
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": "callbutton-gateway"}))
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    tracer = provider.get_tracer("gateway", __version__)

    class Traced(Span):
        """A span that is exported."""

        def __init__(self, inner: OtelSpan) -> None:
            self.inner = inner
            self.trace_id = f"{inner.get_span_context().trace_id:032x}"
            self._token: Any = None

        @property
        def context(self) -> Context:  # type: ignore[override]
            """A copy of the context around, within the span."""
            copied = copy_context()
            copied.run(context.attach, trace.set_span_in_context(self.inner))
            return copied

        def note(self, attributes: Mapping[str, Value]) -> None:
            self.inner.set_attributes(attributes)

        def end(self) -> None:
            self.inner.end()

        def __enter__(self) -> Self:
            self._token = context.attach(trace.set_span_in_context(self.inner))
            return self

        def __exit__(self, kind: type[BaseException] | None, error: object, trace_back: TracebackType | None) -> None:
            context.detach(self._token)
            if kind is not None:
                self.inner.set_attribute("error.type", kind.__name__)
                self.inner.set_status(trace.StatusCode.ERROR)
            self.inner.end()

    def begin(name: str, links: Iterable[Span], headers: Headers) -> Span:
        told = {key.decode("latin-1"): value.decode("latin-1") for key, value in headers if key.startswith(b"trace")}
        joined = [trace.Link(one.inner.get_span_context()) for one in links if isinstance(one, Traced)]
        return Traced(tracer.start_span(name, propagate.extract(told) if told else None, links=joined))

    def trace_here() -> str:
        around = trace.get_current_span().get_span_context()
        return f"{around.trace_id:032x}" if around.is_valid else ""

    def stop() -> None:
        global _begin, _here
        _begin = _here = None
        provider.shutdown()

    _begin, _here = begin, trace_here
    return stop
