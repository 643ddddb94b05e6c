"""The OpenAPI document is built once, and building it does not change the logging of the process."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import httpx

from tests.support.consumers import Member, keys_file
from tests.support.processes import answers, free_port, gateway, running, wait_for

REQUESTS = 16  # at the same time, on a process that has not built the document


def test_building_the_document_leaves_structured_lines_and_the_audit_log(tmp_path: Path):
    port, log = free_port(), tmp_path / "gateway.log"
    settings = {
        "GATEWAY_UPSTREAM_URL": "http://127.0.0.1:9/xml.jsp",
        "GATEWAY_KEYS_FILE": keys_file(tmp_path, Member("reader")),
        "GATEWAY_LOG_FORMAT": "json",
        "GATEWAY_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
    }
    with running(gateway("serve"), log, **settings):
        base = f"http://127.0.0.1:{port}"
        wait_for(lambda: answers(f"{base}/healthz"), "the gateway answers")
        paths = ["/openapi.json", "/openapi.yaml"] * (REQUESTS // 2)
        together = Barrier(REQUESTS)

        def get(path: str) -> httpx.Response:
            together.wait(30)
            return httpx.get(base + path, timeout=60)

        with ThreadPoolExecutor(REQUESTS) as threads:
            found = list(threads.map(get, paths))
        assert [answer.status_code for answer in found] == [200] * REQUESTS
        assert len({answer.text for answer in found}) == 2
        refused = httpx.get(
            f"{base}/clients/8005550100/calls", headers={"X-Request-Id": "after-the-document"}, timeout=60
        )
        assert refused.status_code == 401
        wait_for(lambda: log.read_text("utf-8").count("after-the-document") == 2, "the audit and the access line")
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]  # each is a JSON object
    loggers = {line["logger"] for line in lines if line.get("requestId") == "after-the-document"}
    assert loggers == {"gateway.audit", "gateway.access"}


def test_sixteen_threads_that_ask_first_build_the_document_once():
    """This needs a new process: the current one may have built the document already."""
    script = f"""
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from gateway.api import openapi, routes

built, build_document, together = [], openapi.build, Barrier({REQUESTS})
def counted(*arguments):
    built.append(1)
    return build_document(*arguments)
def build(number):
    together.wait(30)
    return routes.document_yaml() if number % 2 else routes.document_json().decode()
openapi.build = counted
with ThreadPoolExecutor({REQUESTS}) as threads:
    found = set(threads.map(build, range({REQUESTS})))
print(len(built), len(found))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "1 2\n"
