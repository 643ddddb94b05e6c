"""The Callbutton gateway: a call-tracking server from 2009 as a REST/JSON service.

The package from top to bottom; imports go downwards only, and `tests/test_layout.py` holds it:

    __main__      the command line
    cli/          one module a command
    app           composition root: the one place that knows everything
    settings      one table of settings, read once from the environment
    api/          HTTP in, HTTP out: the only place that imports Litestar
    cache/        windows, extents, freshness, flights: the cache that understands time
    callbutton/   the upstream: the only place that knows XML or Central Time
    rate_sync     what consumers have spent at all replicas
    auth/         from a credential to a consumer: keys of a file, tokens of an issuer
    redis_client  the Redis or Valkey server that replicas share; every caller can do without
    metrics       every series, its help and its labels
    tracing       spans for OpenTelemetry, if it is installed and asked for
    logs          structured log lines, without personal data
    server        the HTTP server: stock uvicorn, its listening socket, and how it stops
    guard         what bounds its connections
    shutdown      what the application knows of its own end
    circuit_breaker  whether to send a request to a server that may be down; pure
    rates         token buckets: how often a consumer may ask; pure
    access        who may see what: decisions without I/O
    formats       calls as NDJSON and CSV; pure
    model         Call, Address, Status, Window: frozen Structs
    errors        the tree of errors
    simulator/    a stand-in Callbutton server; imports nothing from the rest
"""

__version__ = "0.1.0"
