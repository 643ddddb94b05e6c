"""The upstream: the only place that knows XML or Central Time.

    service     the Callbutton server as a function: counts, logs, two tries at an EndDate
    gate        the way there: queue, limit and breaker as one
    queue       what waits for a place: who goes first, what is dropped unsent
    limit       how many POSTs may be under way
    breaker     whether to ask at all
    retry       whether to ask once more
    recordings  recordings of calls, streamed
    transport   one POST over httpx, with its time-outs
    request     client codes and wall times to XML
    reply       XML to calls, as it streams in
    record      one call detail record
    text        bytes to text that an XML parser accepts
    central     wall time to UTC and back

All but service, gate, recordings and transport are pure.
"""
