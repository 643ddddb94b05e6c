"""The composition root: builds every part of the gateway from the settings, and gives it the clock."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING

from anyio.lowlevel import checkpoint
from prometheus_client import CollectorRegistry

from gateway.access import ANONYMOUS
from gateway.api.console import Console
from gateway.api.middleware.request_context import RequestContextMiddleware
from gateway.api.query import check_names
from gateway.api.responses import Services
from gateway.api.routes import create_api
from gateway.api.signing import SigningKeys
from gateway.auth.access_keys import KeysError
from gateway.auth.authenticator import Authenticator
from gateway.auth.key_file import KeyFile
from gateway.cache.freshness import Rule
from gateway.cache.reader import Cache, CacheSettings
from gateway.cache.watch import Feeds
from gateway.callbutton.client import UpstreamClient, UpstreamSettings
from gateway.callbutton.record import FIELDS
from gateway.callbutton.recordings import MAX_RECORDINGS, Recordings
from gateway.callbutton.transport import UpstreamLimits
from gateway.extra_fields import ExtraFields
from gateway.logs import AccessLog
from gateway.memory import Memory
from gateway.metrics import Metrics
from gateway.rate_sync import RateSync
from gateway.rates import RateLimiter, Shares, Turns
from gateway.redis_client import RedisClient
from gateway.settings import Settings, SettingsError, variable
from gateway.shutdown import Shutdown

if TYPE_CHECKING:
    from gateway.auth.issuer import Issuer

CONSUMER_STREAMS = 100  # streams of the change feed of one consumer
UNSENT_SHARE = 4  # responses that are not yet read have a quarter of GATEWAY_CACHE_BYTES, in addition
EXPORT_BYTES = 1024**2  # an export holds about half of it while it is not read
SUMMARY_BYTES = 16 * 1024**2  # a summary of 20,000 rows, while it is computed
Clock = Callable[[], float]


def signing_keys(settings: Settings) -> SigningKeys:
    """The keys of GATEWAY_SIGNING_KEY."""
    return tuple(key.strip().encode() for key in settings.signing_key.split(","))


def build_extras(settings: Settings) -> ExtraFields:
    """The promoted extra fields. Raises SettingsError for one that cannot be a field."""
    extras = ExtraFields(settings.extra_fields, settings.extra_public)
    try:
        check_names(extras)
        for one in extras.fields:
            if one.element.partition(".")[0] in FIELDS and not one.element.startswith("Address."):
                raise ValueError(f"{one.element} is an element of the protocol, which is a field already")
            if one.personal and one.element in settings.extra_public:
                raise ValueError(f"{one.element} is personal, but GATEWAY_EXTRA_PUBLIC names it")
    except ValueError as error:
        raise SettingsError(f"GATEWAY_EXTRA_FIELDS: {error}", "extra_fields") from error
    return extras


def build_upstream(settings: Settings, metrics: Metrics, clock: Clock = time.time) -> UpstreamClient:
    """Build the client of the upstream. Raises SettingsError for a URL that is not valid."""
    limits = UpstreamLimits(
        first_byte=settings.upstream_timeout,
        idle=settings.upstream_idle_timeout,
        deadline=settings.upstream_deadline,
        concurrency=settings.upstream_concurrency,
        max_bytes=settings.upstream_max_bytes,
    )
    upstream = UpstreamSettings(
        url=settings.upstream_url,
        limits=limits,
        proxy=settings.upstream_proxy,
        flag_element=settings.status_flag_element,
        null_end=settings.upstream_null_end == "on",
    )
    try:
        return UpstreamClient(upstream, metrics, clock)
    except ValueError as error:
        raise SettingsError(f"GATEWAY_UPSTREAM_URL or GATEWAY_UPSTREAM_PROXY: {error}", "upstream_url") from error


def build_recordings(settings: Settings) -> Recordings:
    """Build the client that fetches recordings from the upstream."""
    limits = UpstreamLimits(first_byte=settings.upstream_timeout, idle=settings.upstream_idle_timeout)
    return Recordings(settings.recording_url, settings.upstream_url, limits, settings.upstream_proxy)


def build_authenticator(
    settings: Settings, metrics: Metrics, memory: Memory, clock: Clock = time.time
) -> Authenticator | None:
    """Build the authenticator; None if GATEWAY_AUTH is none. Raises SettingsError."""
    if settings.auth == "none":
        return None
    methods = settings.auth.split("+")
    return Authenticator(
        clock,
        build_key_file(settings, metrics) if "keys" in methods else None,
        build_issuer(settings, metrics, clock, memory) if "oidc" in methods else None,
    )


def build_key_file(settings: Settings, metrics: Metrics) -> KeyFile:
    """Load the access keys. Raises SettingsError."""
    if not settings.keys_file:
        text = "GATEWAY_KEYS_FILE is not set: make a key with `callbutton-gateway keys new`, or set GATEWAY_AUTH=none"
        raise SettingsError(text, "keys_file")
    try:
        return KeyFile(settings.keys_file, metrics)
    except KeysError as error:
        raise SettingsError(f"GATEWAY_KEYS_FILE cannot be used: {error}", "keys_file") from error


def build_issuer(settings: Settings, metrics: Metrics, clock: Clock, memory: Memory) -> Issuer:
    """Build the verifier of bearer tokens. Raises SettingsError."""
    from gateway.auth.issuer import Issuer  # imports cryptography, which takes time and memory
    from gateway.auth.tokens import TokenRules

    for name in ("oidc_issuer", "oidc_audience"):
        if not getattr(settings, name):
            raise SettingsError(f"{variable(name)} is not set: GATEWAY_AUTH={settings.auth} requires it", name)
    rules = TokenRules(
        issuer=settings.oidc_issuer,
        audience=settings.oidc_audience,
        clients_claim=settings.oidc_clients_claim,
        scopes_claim=settings.oidc_scopes_claim,
        name_claim=settings.oidc_name_claim,
        rate=settings.oidc_rate,
    )
    return Issuer(rules, metrics, clock, memory)


def build_cache(
    settings: Settings,
    upstream: UpstreamClient,
    metrics: Metrics,
    clock: Clock = time.time,
    shared: RedisClient | None = None,
    memory: Memory | None = None,
) -> Cache:
    """Build the cache of the upstream's calls. `shared` is the Redis client, if replicas share a cache.

    Without `memory`, the cache alone has all bytes of the setting.
    """
    rules = CacheSettings(
        plain=Rule(settings.fresh_min, settings.fresh_ratio, settings.fresh_max),
        with_status=Rule(settings.fresh_min, settings.fresh_status_ratio, settings.fresh_max),
        max_span=int(settings.upstream_max_span),
        batch=settings.upstream_batch,
        cache_bytes=settings.cache_bytes,
        stale_if_error=settings.stale_if_error,
        stale_while_revalidate=settings.stale_while_revalidate,
        source=sha256(f"{settings.upstream_url} {settings.status_flag_element}".encode()).hexdigest()[:12],
        signing_key=signing_keys(settings)[0],
    )
    return Cache(upstream.fetch, rules, metrics, clock, shared, memory)


def create(
    settings: Settings,
    registry: CollectorRegistry | None = None,
    clock: Clock = time.time,
) -> RequestContextMiddleware:
    """Build the gateway. Raises SettingsError."""
    extras = build_extras(settings)
    metrics = Metrics(registry or CollectorRegistry())
    upstream = build_upstream(settings, metrics, clock)
    shared = RedisClient(settings.cache_url, metrics, clock) if settings.cache_url else None
    memory = Memory(settings.cache_bytes)
    cache = build_cache(settings, upstream, metrics, clock, shared, memory)
    authenticator = build_authenticator(settings, metrics, memory, clock)
    share, shutdown = settings.consumer_share, Shutdown()
    services = Services(
        cache,
        clock,
        signing_keys(settings),
        settings.history_start,
        settings.request_deadline,
        rates := RateLimiter(memory),
        Shares("requests", "requests", settings.request_concurrency, share),
        Shares("exports", "exports", settings.cache_bytes // EXPORT_BYTES + 1, share, settings.consumer_exports, 10),
        Shares("recordings", "recordings", MAX_RECORDINGS, share, retry_after=5),
        Shares("streams", "streams", settings.streams, 1, CONSUMER_STREAMS if authenticator else math.inf, 10),
        Turns(max(4, settings.cache_bytes // SUMMARY_BYTES), most=max(2, settings.cache_bytes // SUMMARY_BYTES // 4)),
        Turns(1, most=1),
        recordings := build_recordings(settings),
        (lambda _: ANONYMOUS) if authenticator is None else authenticator.current_rights,
        Feeds(cache, memory, clock, settings.request_deadline, metrics, settings.fresh_min, shutdown.begun),
        shutdown,
        extras,
        settings.public_url,
    )
    access_log = AccessLog(settings.log_format, settings.log_level)
    app, litestar = create_api(
        services,
        authenticator,
        metrics,
        access_log,
        shutdown,
        memory=memory,
        metrics_port=settings.metrics_port,
        unsent=Shares("bytes unread", "unread", settings.cache_bytes // UNSENT_SHARE, share),
        cors_origins=settings.cors_origins,
        page=console_of(settings),
    )
    litestar.on_startup.append(checkpoint)  # imports the backend of anyio, 28 ms, which the first POST would do
    if shared is not None:
        rate_sync = RateSync(rates, shared, clock)
        litestar.on_startup += [rate_sync.start]
        litestar.on_shutdown += [rate_sync.close]
    if authenticator is not None:
        litestar.on_startup += [authenticator.start]
        litestar.on_shutdown += [authenticator.close]
    litestar.on_shutdown += [
        partial(close_unless_forced, cache.close, shutdown),
        *([shared.close] if shared else []),
        upstream.close,
        recordings.close,
        access_log.flush,
    ]
    return app


def console_of(settings: Settings) -> Console | None:
    """The settings of the console; None if it is off. Raises SettingsError."""
    if settings.console == "off":
        return None
    if settings.console_oidc_client_id and "oidc" not in settings.auth:
        text = "GATEWAY_CONSOLE_OIDC_CLIENT_ID requires GATEWAY_AUTH with `oidc`"
        raise SettingsError(text, "console_oidc_client_id")
    return Console(settings.oidc_issuer, settings.console_oidc_client_id)


async def close_unless_forced(close: Callable[[], Coroutine[None, None, None]], shutdown: Shutdown) -> None:
    """Close the cache, which waits for flights, unless a second signal forces the shutdown."""
    closing, forced = asyncio.create_task(close()), asyncio.create_task(shutdown.forced.wait())
    await asyncio.wait([closing, forced], return_when=asyncio.FIRST_COMPLETED)
    forced.cancel()
    if closing.done():
        closing.result()  # raises the error, if there is one
    else:
        closing.cancel()
