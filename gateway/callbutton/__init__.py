"""The upstream: the only place that knows XML or Central Time.

    service     the Callbutton server as a function: counts, logs, two tries at an EndDate
    admission   a slot for each POST: wait queue, adaptive limit, circuit breaker; retries
    wait_queue  the order in which POSTs have their turn, and which are dropped
    recordings  recordings of calls, streamed
    transport   one POST over httpx, with its timeouts
    request     client codes and wall times to XML
    reply       XML to calls, as it streams in
    record      one call detail record
    text        bytes to text that an XML parser accepts
    central     wall time to UTC and back

All but service, admission, recordings and transport are pure.
"""
