"""The Callbutton gateway: a call-tracking server from 2009 as a REST/JSON service.

The package from top to bottom. Imports go downwards only; a test, `test_layout`, checks it.

    __main__         the command line
    cli/             one module for each command
    app              the composition root: builds every part from the settings
    settings         the table of settings, read once from the environment
    api/             HTTP requests and responses: the only place that imports Litestar
    api/console/     the web console: its sources, the built page, and the handlers that serve it
    cache/           windows, extents, freshness, flights: the calls that the gateway holds
    rate_sync        rate limits across replicas
    callbutton/      the upstream: the only place that knows XML or Central Time
    auth/            authentication: from a credential to a consumer, by access keys or OIDC tokens
    redis_client     the Redis or Valkey that replicas share; the gateway also works without it
    redis_nodes      its nodes: one server, the primary of Sentinels, or a cluster
    server           the HTTP server: stock uvicorn, its listening socket and its shutdown
    guard            limits of connections: sizes and timeouts that uvicorn does not have
    metrics          every metric, with its help text and labels
    logs             structured log lines without personal data
    rates            rate limits, and fair shares of what consumers share; pure
    memory           one bound of bytes for everything that grows with requests
    slices           long pure work, cut into slices of a few milliseconds
    formats          calls as JSON, NDJSON and CSV; pure
    tracing          spans for OpenTelemetry, if it is installed and configured
    access           authorization and masking; pure
    extra_fields     the promoted extra fields of calls; pure
    circuit_breaker  stops requests to a server that seems down; pure
    shutdown         the state of the shutdown, shared by server and application
    model            Call, CallerAddress, CallStatus, Window: frozen Structs
    errors           the tree of errors
    simulator/       a stand-in Callbutton server; imports nothing from the other parts

`docs/architecture.md` has diagrams, and the invariants T1 to T9 that docstrings name.

To follow a request begin with `api/routes.py`, then `api/calls.py` and `cache/reader.py`.
"""

__version__ = "0.1.0"
