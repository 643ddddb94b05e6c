"""Traces: a collector receives the spans of a request, its plan, flight, POST and parse; tracing is off by default."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from gateway import tracing
from gateway.simulator.server import PATH
from tests.support.processes import answers, free_port, gateway, reachable, running, wait_for

ROUTE = "GET /clients/{code}/calls"
CALLER = "4bf92f3577b34da6a3ce929d0e0e4736"
WINDOW = {"start": "2026-11-01T00:00:00Z", "end": "2026-11-02T00:00:00Z"}


@contextmanager
def collecting() -> Iterator[tuple[str, list[Span]]]:
    """Receive OTLP over HTTP. Yields the address and the received spans."""
    spans: list[Span] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                spans.extend(span for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", spans
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def traced(folder: Path, collector: str) -> Iterator[str]:
    """Run a slow simulator and a gateway with tracing. Yields the address of the gateway."""
    port, upstream = free_port(), free_port()
    settings = {
        "GATEWAY_UPSTREAM_URL": f"http://127.0.0.1:{upstream}{PATH}",
        "GATEWAY_AUTH": "none",
        "GATEWAY_PORT": str(port),
        "GATEWAY_SIGNING_KEY": "k" * 32,
        "GATEWAY_LOG_FORMAT": "json",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    simulate = gateway("simulate", "--port", str(upstream), "--latency", "1")
    with (
        running(simulate, folder / "simulator.log"),
        running(gateway("serve"), folder / "gateway.log", **settings),
    ):
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/readyz"), "the gateway is ready")
        wait_for(lambda: reachable(upstream), "the simulator listens")
        yield f"http://127.0.0.1:{port}"


def of(spans: Sequence[Span], name: str, trace: bytes | None = None) -> list[Span]:
    return [span for span in spans if span.name == name and trace in (None, span.trace_id)]


def attributes(span: Span) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "") for pair in span.attributes}


def test_a_request_is_traced_through_plan_flight_post_and_parse_and_who_joins_has_a_link(tmp_path: Path):
    with collecting() as (collector, spans), traced(tmp_path, collector) as address:

        def ask(headers: dict[str, str]) -> httpx.Response:
            return httpx.get(f"{address}/clients/8005550100/calls", params=WINDOW, headers=headers, timeout=60)

        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(ask, {"traceparent": f"00-{CALLER}-00f067aa0ba902b7-01"})
            wait_for(
                lambda: "in_flight 1.0" in httpx.get(f"{address}/metrics", timeout=60).text.split("posts_")[-1],
                "a POST",
            )
            second = pool.submit(ask, {})
            assert (first.result().status_code, second.result().status_code) == (200, 200)
        wait_for(lambda: len(of(spans, "wait")) >= 2 and len(of(spans, ROUTE, bytes.fromhex(CALLER))) == 1, "spans")
        (request,) = of(spans, ROUTE, bytes.fromhex(CALLER))
        (flight,) = of(spans, "flight", request.trace_id)
        assert request.parent_span_id.hex() == "00f067aa0ba902b7"
        assert attributes(request)["http.route"] == "/clients/{code}/calls"
        assert attributes(request)["http.response.status_code"] == 200
        parents = {span.span_id: span for span in spans}
        (post,) = of(spans, "POST", request.trace_id)
        (parse,) = of(spans, "parse", request.trace_id)
        assert parents[parse.parent_span_id] == post
        assert parents[post.parent_span_id] == flight
        assert flight.parent_span_id == request.span_id
        assert of(spans, "plan", request.trace_id)[0].parent_span_id == request.span_id
        (joined,) = [span for span in of(spans, "wait") if attributes(span)["joined"]]
        assert joined.trace_id != request.trace_id
        assert [link.span_id for link in joined.links] == [flight.span_id]
        told = [str(attributes(span)) for span in spans]
        assert not [text for text in told if "8005550100" in text or "2026-11-01" in text]
        log = tmp_path / "gateway.log"
        wait_for(lambda: f'"traceId":"{CALLER}"' in log.read_text("utf-8"), "the trace's id in the access log")


def test_of_an_error_a_span_tells_the_type_alone(monkeypatch: pytest.MonkeyPatch):
    with collecting() as (collector, spans):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector)
        stop = tracing.start()
        try:
            with pytest.raises(KeyError), tracing.span("lookup"):
                raise KeyError("8005550100")
        finally:
            stop()
        (span,) = spans
    assert attributes(span) == {"error.type": "KeyError"}
    assert (span.status.code, span.status.message, len(span.events)) == (Status.STATUS_CODE_ERROR, "", 0)


def test_without_the_extra_the_gateway_runs_and_with_it_no_span_is_made_unless_asked_for():
    load = "import gateway.app, gateway.cli.serve"
    hidden = f"import sys; sys.modules['opentelemetry'] = None; {load}"
    unasked = f"import sys; {load}; print('opentelemetry.sdk.trace' in sys.modules)"  # redis imports other parts
    for program, printed in ((hidden, ""), (unasked, "False\n")):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout == printed


def test_tracing_that_is_asked_for_but_not_installed_stops_the_start_with_one_line():
    program = (
        "import sys, importlib.util; find = importlib.util.find_spec; "
        "hidden = lambda name, *rest: None if name.startswith('opentelemetry') else find(name, *rest); "
        "importlib.util.find_spec = hidden; "
        "from gateway.__main__ import main; sys.exit(main(['serve']))"
    )
    variables = {
        "GATEWAY_UPSTREAM_URL": "http://127.0.0.1:9/",
        "GATEWAY_AUTH": "none",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "x",
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=variables, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("callbutton-gateway: OTEL_EXPORTER_OTLP_ENDPOINT is set, but")
