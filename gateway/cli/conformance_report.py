"""The conformance report of `check --report`: how the server reads the open points of the protocol document.

Rules:
- The report is text on standard output. `--json` writes it as JSON too, or instead of text if FILE is `-`.
- Exit codes: 0 success, 1 the first POST failed, 2 the command or a setting is not valid, 130 interrupted. During the
  watch for late calls, an interrupt ends only the watch.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway import errors
from gateway.cli import INTERRUPTED
from gateway.cli.check import advice_on, failure_of
from gateway.cli.progress import Progress, print_error
from gateway.model import EVERY_CLIENT
from gateway.settings import SECONDS, Settings, parse_quantity

if TYPE_CHECKING:
    from gateway.callbutton.conformance.findings import Finding
    from gateway.callbutton.conformance.inquiry import Inquiry

MAX_WATCH = 22 * 3600  # seconds; the window of late calls is an hour longer, and at most a day
STDOUT = Path("-")


def run(settings: Settings, codes: Sequence[str], watch: str, output: Path | None) -> int:
    """Make the report, write it, and return the exit code. Raises ValueError, OSError."""
    seconds = parse_watch(watch)
    progress = Progress()
    with ExitStack() as undo:
        if output is not None and output != STDOUT:
            if not output.exists():
                undo.callback(output.unlink)
            output.open("a").close()  # a file that cannot be written fails here, not after the POSTs
        try:
            report = asyncio.run(make_report(settings, codes, seconds, show=progress.note))
        except KeyboardInterrupt:
            progress.clear()
            print_error("interrupted: there is no report")
            return INTERRUPTED
        undo.pop_all()
    progress.clear()
    if output != STDOUT:
        print(render_text(report))
    if output is not None:
        text = json.dumps(report, indent=2, ensure_ascii=False)
        print(text) if output == STDOUT else output.write_text(f"{text}\n", "utf-8")
    return 1 if report["failure"] else 0


def parse_watch(text: str) -> float:
    """Parse how long to look for late calls, in seconds. Raises ValueError."""
    with suppress(ValueError):
        if (seconds := parse_quantity(text, SECONDS)) <= MAX_WATCH:
            return seconds
    raise ValueError(f"--watch {text!r} is not a duration such as 10m or 1h, at most 22h")


async def make_report(
    settings: Settings,
    codes: Sequence[str],
    watch: float = 0,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    show: Callable[[str], None] = lambda text: None,  # noqa: ARG005
) -> dict[str, Any]:
    """Send the POSTs, and return the report as a JSON object. Raises SettingsError, ValueError."""
    import httpx
    from prometheus_client import CollectorRegistry

    from gateway.app import build_upstream
    from gateway.callbutton.conformance.inquiry import Inquiry, Questions
    from gateway.callbutton.conformance.probes import find_out
    from gateway.metrics import Metrics

    upstream = build_upstream(settings, Metrics(CollectorRegistry()))
    questions = Questions(
        codes=tuple(codes) or (EVERY_CLIENT,),
        flag_element=settings.status_flag_element,
        batch=settings.upstream_batch,
        max_span=settings.upstream_max_span,
        max_bytes=settings.upstream_max_bytes,
        timeout=settings.upstream_timeout,
        deadline=settings.upstream_deadline,
        watch=watch,
    )
    inquiry = Inquiry(upstream.transport, questions, clock, sleep, show)
    findings, failure = list["Finding"](), None
    try:
        findings = await find_out(inquiry)
    except errors.UpstreamError as error:
        failure = {"error": failure_of(error), "advice": advice_on(error)}
        if not codes and inquiry.posts[-1].evidence is not None:  # it is the server that reports a failure
            failure["advice"] += "; if the server refuses the client code *, name client codes with --client"
    finally:
        await upstream.close()
    return {
        "server": str(httpx.URL(settings.upstream_url).copy_with(userinfo=b"")),
        "madeAt": f"{datetime.fromtimestamp(clock(), UTC):%Y-%m-%dT%H:%M:%SZ}",
        "failure": failure,
        "findings": [
            {
                "name": one.name,
                "value": one.value,
                "text": one.text,
                "evidence": list(one.evidence),
                "setting": one.setting,
            }
            for one in findings
        ],
        "posts": _posts(inquiry),
    }


def _posts(inquiry: Inquiry) -> list[dict[str, Any]]:
    return [
        {
            "number": post.number,
            "clientCodes": list(post.codes),
            "statusFlagElement": post.flag_element,
            "startDate": post.start,
            "endDate": post.end,
            "outcome": post.outcome,
            "bytes": post.size,
            "seconds": round(post.seconds, 3),
        }
        for post in inquiry.posts
    ]


def render_text(report: dict[str, Any]) -> str:
    """Render a report for people."""
    posts = report["posts"]
    lines = [f"{report['server']}: {len(posts)} POSTs, {sum(post['seconds'] for post in posts):.1f} s", ""]
    if failure := report["failure"]:
        lines += [f"does not work: {failure['error']}", f"what to do: {failure['advice']}"]
    for one in report["findings"]:
        lines += [f"{one['name']}: {one['value'] or 'unknown'}", f"  {one['text']}"]
        lines += [f"  evidence: {line}" for line in one["evidence"]]
        lines += [f"  setting: {one['setting'] or 'nothing to set'}", ""]
    settings = [one["setting"] for one in report["findings"] if one["setting"]]
    return "\n".join([*lines, *(["Settings that follow:", *settings] if settings else [])]).rstrip()
