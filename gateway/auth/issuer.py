"""The issuer of bearer tokens: fetches and caches its keys, and caches verified tokens.

Rules:
- Keys are fetched again after ten minutes; the old keys remain in use meanwhile. If the issuer is unreachable, its keys
  remain in use for a day.
- A token with an unknown key causes a fetch, so that new keys work at once. Each network may cause one in
  SOURCE_INTERVAL, and all together one in MIN_PAUSE, so that invalid tokens neither flood the issuer nor deny a fetch
  to tokens from elsewhere.
- A fetch is a separate task, so a consumer that disconnects does not cancel it. It follows no redirects, and reads at
  most 1 MiB. It uses proxies and certificate authorities of the environment (HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE).
- A verified token is cached, by its hash, until it expires or the keys change: verifying a signature takes much longer.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from urllib.parse import urlsplit

import httpx
import msgspec

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
SOURCE_INTERVAL = 5.0  # seconds between two fetches that tokens from one network cause
MIN_PAUSE, MAX_PAUSE = 1.0, 60.0  # seconds between two fetches; doubled for each failure after the first
MAX_KEY_AGE = 86400  # seconds; bridges an outage of the issuer
FETCH_TIMEOUT = 5.0  # seconds for both requests; a consumer may be waiting
MAX_RESPONSE_SIZE = 1024**2  # bytes; key sets have a few kB
PART = 1 / 16  # of the memory, for verified tokens
TOKEN_BYTES = 800  # of a verified token, without its clients
CLIENT_BYTES = 130  # of a client that a token names, at most
SOURCES_PART = 1 / 256  # of the memory, for networks; at most one causes a fetch in MIN_PAUSE
SOURCE_BYTES = 150  # of a network


class Issuer:
    """Authenticates consumers by bearer tokens."""

    def __init__(self, rules: TokenRules, metrics: Metrics, clock: Callable[[], float], memory: Memory) -> None:
        self.rate = rules.rate
        self._rules = rules
        self._metrics = metrics
        self._clock = clock
        self._keys: Mapping[str, TokenKey] = {}
        self._fetched_at = -math.inf
        self._tried_at = -math.inf
        self._failures = 0  # in a row
        self._fetch: asyncio.Task[None] | None = None  # in progress
        self._sources: Lru[str, float] = Lru(memory, SOURCES_PART)  # when each network last caused a fetch
        self._verified: Lru[bytes, VerifiedToken] = Lru(memory, PART)

    async def close(self) -> None:
        """Wait for a fetch in progress."""
        if self._fetch is not None:
            await asyncio.wait([self._fetch])

    async def authenticate(self, token: str, source: str) -> VerifiedToken:
        """Verify a token that came from the network `source`. Raises Unauthenticated, IssuerUnreachable."""
        now = self._clock()
        if not is_within(self._fetched_at, MAX_KEY_AGE, now):
            await self._wait_for_fetch(source, now)
            if not is_within(self._fetched_at, MAX_KEY_AGE, now):
                pause = self._tried_at + self._pause() - now
                raise IssuerUnreachable(
                    "tokens cannot be verified: the issuer is unreachable", "issuer unreachable", pause
                )
        elif not is_within(self._fetched_at, REFRESH_INTERVAL, now):
            self._start_fetch(source, now)
        digest = hashlib.sha256(token.encode()).digest()
        verified = self._verified.get(digest)
        if verified is not None and now < verified.expiry:
            return verified
        try:
            verified = await self._verify(token, source, now)
        except TokenError as error:
            raise Unauthenticated(INVALID_CREDENTIAL, str(error)) from error
        size = TOKEN_BYTES + CLIENT_BYTES * len(verified.consumer.clients)
        self._verified.put(digest, verified, size)
        return verified

    async def _verify(self, token: str, source: str, now: float) -> VerifiedToken:
        """Verify a token; if its key is unknown, after another fetch of the keys. Raises TokenError."""
        try:
            return verify_token(token, self._keys, self._rules, now)
        except UnknownKeyError:
            last = self._sources.get(source)
            if last is not None and is_within(last, SOURCE_INTERVAL, now):
                raise
        earlier = self._fetch
        await self._wait_for_fetch(source, now)
        if earlier is not None:  # it may have begun before the issuer published the key
            with suppress(UnknownKeyError):
                return verify_token(token, self._keys, self._rules, now)
            await self._wait_for_fetch(source, now)
        return verify_token(token, self._keys, self._rules, now)

    async def _wait_for_fetch(self, source: str, now: float) -> None:
        """Wait for the fetch in progress, or for another one unless the last one failed just now."""
        if (task := self._start_fetch(source, now)) is not None:
            await asyncio.wait([task])

    def _start_fetch(self, source: str, now: float) -> asyncio.Task[None] | None:
        """The fetch in progress, or a new one; None during the pause after a failed one."""
        if self._fetch is None:
            paused = is_within(self._tried_at, self._pause(), now)
            if paused and self._failures:
                return None
            delay = self._tried_at + self._pause() - now if paused else 0
            self._tried_at = now + delay
            self._sources.put(source, now, SOURCE_BYTES)
            self._fetch = asyncio.create_task(self._fetch_keys(now, delay))
        return self._fetch

    def _pause(self) -> float:
        """Seconds between two fetches: longer after each failure in a row."""
        return min(MIN_PAUSE * 2.0 ** max(0, self._failures - 1), MAX_PAUSE)

    async def _fetch_keys(self, now: float, delay: float) -> None:
        try:
            await asyncio.sleep(delay)
            async with asyncio.timeout(FETCH_TIMEOUT):
                keys = await fetch_keys(self._rules.issuer)
        # TimeoutError is an OSError. ImportError: the environment names a SOCKS proxy.
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, ImportError) as error:
            self._failures += 1
            self._metrics.issuer_fetches.labels("failed").inc()
            LOGGER.warning("fetching the issuer's keys failed", extra={"fields": {"error": type(error).__name__}})
        else:
            self._failures = 0
            self._metrics.issuer_fetches.labels("ok").inc()
            if keys != self._keys:
                while self._verified.free():
                    pass
            self._keys, self._fetched_at = keys, now
        finally:
            self._fetch = None


def is_within(instant: float, seconds: float, now: float) -> bool:
    """Whether an instant was less than `seconds` ago. One in the future was not: the clock was set back since."""
    return 0 <= now - instant < seconds


async def fetch_keys(issuer: str) -> dict[str, TokenKey]:
    """Fetch the keys of an issuer, by its discovery document. Raises httpx.HTTPError, httpx.InvalidURL, ValueError."""
    async with httpx.AsyncClient(follow_redirects=False, timeout=FETCH_TIMEOUT) as client:
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
