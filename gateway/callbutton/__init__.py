"""The upstream: the only package that knows XML or Central Time. This package does not know consumers or the cache.

Begin reading with `client`, which is the upstream as a function: client codes and a window to calls.

    client        one fetch: render the request, POST, retry, count, log
    admission     a slot for each POST: wait queue, adaptive limit, circuit breaker, retry budget
    wait_queue    the order in which POSTs get a slot, and which are dropped
    transport     one POST over httpx, with the timeouts of a flight
    reply         XML to calls, while it streams in
    record        one call detail record
    text          bytes of a reply to text that an XML parser accepts
    central_time  wall time to UTC and back
    recordings    recordings of calls, streamed
    conformance   the report of `check`: how a server reads the open points of the protocol

All modules but client, admission, recordings, transport and two of `conformance` are pure.
"""
