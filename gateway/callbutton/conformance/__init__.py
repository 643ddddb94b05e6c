"""The conformance report: how a server reads the points that the protocol document leaves open.

    probes        questions that need POSTs of their own
    observations  findings of all replies, whatever was asked
    findings      the findings there are, each with its values and their texts
    inquiry       the POSTs of a report, sent and read
    evidence      a reply as it is on the wire

All but inquiry and probes are pure. The rules of both bound the load on the server.
"""
