"""The issuer of bearer tokens: its keys, fetched and kept, and the tokens found sound by them.

Rules:
- Keys are asked for anew after ten minutes, while the old ones still serve; for a token of an unknown key at most once
  a minute, so that strangers cannot make us ask. They serve for a day at most while the issuer cannot be had.
- A fetch is a task of its own: no consumer who leaves cancels it. It follows no redirect and reads at most 1 MiB.
- A token found sound is remembered by its hash until it expires or the keys change: a signature costs more than a hit.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

import httpx
import msgspec

from gateway.access import Consumer
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
from gateway.metrics import Metrics

LOGGER = logging.getLogger(__name__)
DISCOVERY = "/.well-known/openid-configuration"
REFRESH_INTERVAL = 600  # seconds after which keys are asked for anew
MIN_FETCH_INTERVAL = 60  # seconds between two attempts
MAX_KEY_AGE = 86400  # seconds that keys serve
FETCH_TIMEOUT = 5.0  # seconds for a whole fetch
MAX_RESPONSE_SIZE = 1024**2
MAX_TOKENS = 10_000


class Issuer:
    """Finds the consumer of a bearer token."""

    def __init__(self, rules: TokenRules, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._rules = rules
        self._metrics = metrics
        self._clock = clock
        self._keys: Mapping[str, TokenKey] = {}
        self._fetched = self._tried = float("-inf")
        self._fetch: asyncio.Task[None] | None = None
        self._sound: OrderedDict[bytes, VerifiedToken] = OrderedDict()

    async def close(self) -> None:
        """Let a fetch end."""
        if self._fetch is not None:
            await asyncio.wait([self._fetch])

    async def consumer(self, token: str) -> Consumer:
        """The consumer of a token. Raises Unauthenticated, IssuerUnreachable."""
        now = self._clock()
        if now - self._fetched >= MAX_KEY_AGE:
            await self._refreshed(now)
            if now - self._fetched >= MAX_KEY_AGE:
                raise IssuerUnreachable("tokens cannot be judged now", MIN_FETCH_INTERVAL)
        elif now - self._fetched >= REFRESH_INTERVAL:
            self._begin(now)
        digest = hashlib.sha256(token.encode()).digest()
        bearer = self._sound.get(digest)
        if bearer is not None and now < bearer.until:
            self._sound.move_to_end(digest)
            return bearer.consumer
        try:
            try:
                bearer = verify_token(token, self._keys, self._rules, now)
            except UnknownKeyError:
                if not await self._refreshed(now):
                    raise
                bearer = verify_token(token, self._keys, self._rules, now)
        except TokenError as error:
            raise Unauthenticated("the credential is not known, or no longer", str(error)) from error
        self._sound[digest] = bearer
        if len(self._sound) > MAX_TOKENS:
            self._sound.popitem(last=False)
        return bearer.consumer

    async def _refreshed(self, now: float) -> bool:
        """Wait for a fetch, if one is under way or may begin; whether there was one."""
        task = self._begin(now)
        if task is not None:
            await asyncio.wait([task])
        return task is not None

    def _begin(self, now: float) -> asyncio.Task[None] | None:
        if self._fetch is None or self._fetch.done():
            if abs(now - self._tried) < MIN_FETCH_INTERVAL:
                return None
            self._tried = now
            self._fetch = asyncio.create_task(self._renew(now))
        return self._fetch

    async def _renew(self, now: float) -> None:
        try:
            async with asyncio.timeout(FETCH_TIMEOUT):
                keys = await fetch_keys(self._rules.issuer)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:  # time-outs are OSErrors
            self._metrics.issuer_fetches.labels("failed").inc()
            LOGGER.warning("the issuer's keys cannot be had", extra={"fields": {"error": type(error).__name__}})
            return
        self._metrics.issuer_fetches.labels("ok").inc()
        if keys != self._keys:
            self._sound.clear()
        self._keys, self._fetched = keys, now


async def fetch_keys(issuer: str) -> dict[str, TokenKey]:
    """Fetch the keys of an issuer. Raises httpx.HTTPError, ValueError."""
    async with httpx.AsyncClient(follow_redirects=False, trust_env=False, timeout=FETCH_TIMEOUT) as client:
        described = msgspec.json.decode(await _get(client, issuer.rstrip("/") + DISCOVERY))
        if not isinstance(described, dict) or described.get("issuer") != issuer:
            raise ValueError("it describes another issuer")
        address = str(described.get("jwks_uri"))
        if urlsplit(address).scheme not in ("https", urlsplit(issuer).scheme):
            raise ValueError("its keys are less safe than itself")
        keys = parse_key_set(await _get(client, address))
    if not keys:
        raise ValueError("it has no key that can be used")
    return keys


async def _get(client: httpx.AsyncClient, address: str) -> bytes:
    content = b""
    async with client.stream("GET", address, headers={"Accept": "application/json"}) as answer:
        if answer.status_code != httpx.codes.OK:
            raise ValueError(f"status {answer.status_code}")
        async for chunk in answer.aiter_bytes():
            content += chunk
            if len(content) > MAX_RESPONSE_SIZE:
                raise ValueError("it is too long")
    return content
