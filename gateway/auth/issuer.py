"""The issuer of bearer tokens: fetches and caches its keys, and caches verified tokens.

Rules:
- Keys are fetched again after ten minutes; the old keys remain in use meanwhile. A token with an unknown key causes a
  fetch at most once a minute, so that invalid tokens cannot flood the issuer. If the issuer is unreachable, its keys
  remain in use for a day.
- A fetch is a separate task, so a consumer that disconnects does not cancel it. It follows no redirects, and reads at
  most 1 MiB.
- A verified token is cached, by its hash, until it expires or the keys change: verifying a signature takes much longer.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

import httpx
import msgspec

from gateway.access import Consumer
from gateway.auth import INVALID_CREDENTIAL
from gateway.auth.tokens import (
    TokenError,
    TokenKey,
    TokenRules,
    UnknownKeyError,
    VerifiedToken,
    parse_key_set,
    verify_token,
)
from gateway.errors import IssuerUnreachable, Unauthenticated
from gateway.memory import Lru, Memory
from gateway.metrics import Metrics

LOGGER = logging.getLogger(__name__)
DISCOVERY = "/.well-known/openid-configuration"  # OpenID Connect Discovery 1.0
REFRESH_INTERVAL = 600  # seconds; a key that the issuer withdraws is accepted that much longer
MIN_FETCH_INTERVAL = 60  # seconds between two fetches
MAX_KEY_AGE = 86400  # seconds; bridges an outage of the issuer
FETCH_TIMEOUT = 5.0  # seconds for both requests; a consumer may be waiting
MAX_RESPONSE_SIZE = 1024**2  # bytes; key sets have a few kB
PART = 1 / 16  # of the memory, for verified tokens
TOKEN_BYTES = 800  # of a verified token, without its clients
CLIENT_BYTES = 130  # of a client that a token names, at most


class Issuer:
    """Authenticates consumers by bearer tokens."""

    def __init__(self, rules: TokenRules, metrics: Metrics, clock: Callable[[], float], memory: Memory) -> None:
        self._rules = rules
        self._metrics = metrics
        self._clock = clock
        self._keys: Mapping[str, TokenKey] = {}
        self._fetched_at = self._last_attempt = float("-inf")
        self._fetch: asyncio.Task[None] | None = None
        self._verified: Lru[bytes, VerifiedToken] = Lru(memory, PART)

    async def close(self) -> None:
        """Wait for a fetch in progress."""
        if self._fetch is not None:
            await asyncio.wait([self._fetch])

    async def authenticate(self, token: str) -> Consumer:
        """The consumer of a token. Raises Unauthenticated, IssuerUnreachable."""
        now = self._clock()
        if now - self._fetched_at >= MAX_KEY_AGE:
            await self._wait_for_fetch(now)
            if now - self._fetched_at >= MAX_KEY_AGE:
                raise IssuerUnreachable(
                    "tokens cannot be verified: the issuer is unreachable", "issuer unreachable", MIN_FETCH_INTERVAL
                )
        elif now - self._fetched_at >= REFRESH_INTERVAL:
            self._start_fetch(now)
        digest = hashlib.sha256(token.encode()).digest()
        verified = self._verified.get(digest)
        if verified is not None and now < verified.expiry:
            return verified.consumer
        try:
            try:
                verified = verify_token(token, self._keys, self._rules, now)
            except UnknownKeyError:
                if not await self._wait_for_fetch(now):
                    raise
                verified = verify_token(token, self._keys, self._rules, now)
        except TokenError as error:
            raise Unauthenticated(INVALID_CREDENTIAL, str(error)) from error
        size = TOKEN_BYTES + CLIENT_BYTES * len(verified.consumer.clients)
        self._verified.put(digest, verified, size)
        return verified.consumer

    async def _wait_for_fetch(self, now: float) -> bool:
        """Wait for a fetch of the keys. Returns False if MIN_FETCH_INTERVAL does not allow one."""
        task = self._start_fetch(now)
        if task is not None:
            await asyncio.wait([task])
        return task is not None

    def _start_fetch(self, now: float) -> asyncio.Task[None] | None:
        """The fetch in progress, or a new one; None if MIN_FETCH_INTERVAL does not allow it."""
        if self._fetch is None or self._fetch.done():
            if abs(now - self._last_attempt) < MIN_FETCH_INTERVAL:
                return None
            self._last_attempt = now
            self._fetch = asyncio.create_task(self._fetch_keys(now))
        return self._fetch

    async def _fetch_keys(self, now: float) -> None:
        try:
            async with asyncio.timeout(FETCH_TIMEOUT):
                keys = await fetch_keys(self._rules.issuer)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:  # TimeoutError is an OSError
            self._metrics.issuer_fetches.labels("failed").inc()
            LOGGER.warning("fetching the issuer's keys failed", extra={"fields": {"error": type(error).__name__}})
            return
        self._metrics.issuer_fetches.labels("ok").inc()
        if keys != self._keys:
            while self._verified.free():
                pass
        self._keys, self._fetched_at = keys, now


async def fetch_keys(issuer: str) -> dict[str, TokenKey]:
    """Fetch the keys of an issuer, by its discovery document. Raises httpx.HTTPError, httpx.InvalidURL, ValueError."""
    async with httpx.AsyncClient(follow_redirects=False, trust_env=False, timeout=FETCH_TIMEOUT) as client:
        configuration = msgspec.json.decode(await _get(client, issuer.rstrip("/") + DISCOVERY))
        if not isinstance(configuration, dict) or configuration.get("issuer") != issuer:
            raise ValueError("the configuration is of another issuer")
        url = str(configuration.get("jwks_uri"))
        if urlsplit(url).scheme not in ("https", urlsplit(issuer).scheme):
            raise ValueError("jwks_uri is http, but the issuer is https")
        keys = parse_key_set(await _get(client, url))
    if not keys:
        raise ValueError("the issuer has no usable key")
    return keys


async def _get(client: httpx.AsyncClient, url: str) -> bytes:
    content = b""
    async with client.stream("GET", url, headers={"Accept": "application/json"}) as response:
        if response.status_code != httpx.codes.OK:
            raise ValueError(f"HTTP status {response.status_code}")
        async for chunk in response.aiter_bytes():
            content += chunk
            if len(content) > MAX_RESPONSE_SIZE:
                raise ValueError(f"the response is larger than {MAX_RESPONSE_SIZE} bytes")
    return content
