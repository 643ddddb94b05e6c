"""The upstream: the only place that knows XML or Central Time.

    service     the Callbutton server as a function: counts, logs, two tries at an EndDate
    gate        the way there: queue, limit and breaker as one
    queue       what waits for a place: who goes first, what is dropped unsent
    limit       how many POSTs may be under way
    breaker     whether to ask at all
    retry       whether to ask once more
    recordings  recordings of calls, streamed
    transport   one POST over httpx, with its time-outs
    wire        a request to XML, a reply to calls
    record      one call detail record
    template    records in the document's own layout, fast
    tree        XML text to a tree, through expat
    charset     bytes to legal XML text
    central     wall time to UTC and back

All but service, gate, recordings and transport are pure.
"""
