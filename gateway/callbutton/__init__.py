"""The upstream: the only place that knows XML or Central Time.

    service     the Callbutton server as a function: counts, logs, two tries at an EndDate
    transport   one POST over httpx, with its time-outs
    wire        a request to XML, a reply to calls
    record      one call detail record
    template    records in the document's own layout, fast
    tree        XML text to a tree, through expat
    charset     bytes to legal XML text
    central     wall time to UTC and back

All but the first two are pure.
"""
