"""Requests to a gateway: a running one (`--gateway`), or one in this process, which is made from the settings.

Rules:
- Both are used through the same API. The one in this process has no port, and no consumer but this command, which sees
  every client.
- A problem is raised as RequestError with the texts of the gateway.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import httpx
import msgspec
from msgspec import Struct

from gateway.settings import Settings

if TYPE_CHECKING:
    from gateway.api.middleware.request_context import RequestContextMiddleware

TIMEOUT = httpx.Timeout(30, read=150)  # seconds; a gateway may take its GATEWAY_REQUEST_DEADLINE, and a long poll 60
IN_PROCESS = "http://gateway"  # the address of the gateway in this process, which nothing resolves
IN_PROCESS_DEADLINE = 3600.0  # seconds for a first reading of a long history
TRANSIENT = {429, 500, 502, 503, 504}  # HTTP statuses after which the same request may succeed

CONNECTION_ERRORS: dict[type[httpx.TransportError], str] = {
    httpx.ConnectError: "no connection: check the address and the port, and whether the gateway runs",
    httpx.TimeoutException: "no answer in time",
    httpx.RemoteProtocolError: "the connection was closed in the middle of the answer, or the port is not of HTTP",
    httpx.TransportError: "the connection failed",
}
TLS_FAILED = "no TLS connection: check the scheme of the address, http or https, and the gateway's certificate"


class Problem(Struct):
    """A problem (RFC 9457) of the gateway, or of a proxy in front of it, which may have none of the members."""

    type: str = ""
    title: str = ""
    detail: str = ""
    hint: str = ""
    errors: list[dict[str, str]] = []


class RequestError(OSError):
    """A request failed, for a `reason` without values. `parameter` is the one that the gateway refused, for `detail`.

    `transient` is whether to repeat it, after `retry_after` seconds at least.
    """

    def __init__(
        self, text: str, reason: str, *, transient: bool, parameter: str = "", detail: str = "", retry_after: float = 0
    ) -> None:
        super().__init__(text)
        self.reason = reason
        self.transient = transient
        self.parameter = parameter
        self.detail = detail
        self.retry_after = retry_after


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the gateway."""
    parser.add_argument(
        "--gateway",
        metavar="URL",
        help="address of a running gateway (default: one in this process, from the settings of serve)",
    )
    parser.add_argument("--key-file", type=Path, metavar="FILE", help="file that contains the access key for --gateway")


def headers_of(arguments: argparse.Namespace) -> dict[str, str]:
    """The credential. Raises ValueError for options that contradict each other, and for the file."""
    if arguments.key_file is None:
        return {}
    if not arguments.gateway:
        raise ValueError("--key-file is the access key for --gateway: add --gateway, or leave it out")
    try:
        key = arguments.key_file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ValueError(f"--key-file {arguments.key_file}: {reason}") from error
    if not key or not key.isascii() or not key.isprintable():
        raise ValueError(f"{arguments.key_file} does not contain an access key alone")
    return {"X-API-Key": key}


@asynccontextmanager
async def connect(
    address: str | None, headers: dict[str, str], settings: Settings | None
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the gateway at an address, or without one of a gateway in this process. Raises SettingsError."""
    if address is not None:
        try:
            client = httpx.AsyncClient(base_url=address, headers=headers, timeout=TIMEOUT)
        except httpx.InvalidURL as error:
            raise ValueError(f"{address} is not the URL of a gateway") from error
        async with client:
            yield client
        return
    from gateway import app

    assert settings is not None  # noqa: S101 - parsed by the command unless it has an address
    own = dataclasses.replace(
        settings, auth="none", cache_url="", log_level="error", request_deadline=IN_PROCESS_DEADLINE
    )
    application = app.create(own)
    transport = httpx.ASGITransport(cast(Any, application))  # httpx and litestar name the types of ASGI differently
    async with lifespan(application), httpx.AsyncClient(transport=transport, base_url=IN_PROCESS) as client:
        yield client


async def get(client: httpx.AsyncClient, path: str, parameters: Sequence[tuple[str, str]]) -> bytes:
    """The body of a successful response. Raises RequestError."""
    with _translated(client):
        response = await client.get(path, params=httpx.QueryParams(tuple(parameters)))
    if response.status_code != httpx.codes.OK:
        raise _failure(response)
    return response.content


async def lines(client: httpx.AsyncClient, path: str, parameters: Sequence[tuple[str, str]]) -> AsyncIterator[bytes]:
    """The lines of a successful NDJSON response, as they arrive. Raises RequestError."""
    rest = b""
    with _translated(client):
        async with client.stream("GET", path, params=httpx.QueryParams(tuple(parameters))) as response:
            if response.status_code != httpx.codes.OK:
                await response.aread()
                raise _failure(response)
            async for part in response.aiter_bytes():  # `aiter_lines` also splits at U+2028, which JSON may contain
                *complete, rest = (rest + part).split(b"\n")
                for line in complete:
                    yield line


@contextmanager
def _translated(client: httpx.AsyncClient) -> Iterator[None]:
    """Translate the errors of the connection."""
    try:
        yield
    except httpx.UnsupportedProtocol as error:
        raise ValueError(f"{client.base_url} is not the URL of a gateway") from error
    except httpx.TransportError as error:
        kind = next(kind for kind in CONNECTION_ERRORS if isinstance(error, kind))
        text = TLS_FAILED if "SSL" in str(error) else CONNECTION_ERRORS[kind]
        raise RequestError(f"{client.base_url}: {text}", type(error).__name__, transient=True) from error


def _failure(response: httpx.Response) -> RequestError:
    """The error of an unsuccessful response."""
    try:
        problem = msgspec.json.decode(response.content, type=Problem)
    except msgspec.MsgspecError:
        problem = Problem()
    if response.status_code == httpx.codes.UNAUTHORIZED:
        problem.hint = "give a file with an access key of the gateway as --key-file"
    first = problem.errors[0] if problem.errors else {}
    faults = "; ".join(f"{one.get('parameter')}: {one.get('detail')}" for one in problem.errors)
    said = faults or problem.detail or problem.title or "no gateway answers there, or a proxy refused the request"
    text = f"HTTP status {response.status_code}: {said}" + (f"\nwhat to do: {problem.hint}" if problem.hint else "")
    after = response.headers.get("Retry-After", "")
    return RequestError(
        text,
        problem.type.rpartition("/")[2] or f"status {response.status_code}",
        transient=response.status_code in TRANSIENT,
        parameter=first.get("parameter", ""),
        detail=first.get("detail", ""),
        retry_after=float(after) if after.isdecimal() else 0,
    )


@asynccontextmanager
async def lifespan(application: RequestContextMiddleware) -> AsyncIterator[None]:
    """Start and stop an application, as an ASGI server does. The stop does not wait for POSTs in flight."""
    requests: asyncio.Queue[Any] = asyncio.Queue()
    answers: asyncio.Queue[Any] = asyncio.Queue()
    scope: Any = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
    task = asyncio.create_task(application(scope, requests.get, answers.put))
    requests.put_nowait({"type": "lifespan.startup"})
    await answers.get()
    try:
        yield
    finally:
        application.shutdown.begun.set()
        application.shutdown.forced.set()
        requests.put_nowait({"type": "lifespan.shutdown"})
        await task
