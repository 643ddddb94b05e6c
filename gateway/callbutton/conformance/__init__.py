"""The conformance report: how a server reads what the protocol document leaves open.

    probes        questions that need POSTs of their own
    observations  what all replies show, whatever was asked
    findings      the findings there are, each with its values and their texts
    inquiry       the POSTs of a report, sent and read
    evidence      a reply as it is on the wire

All but inquiry and probes are pure. The rules of `probes` bound what a server is asked.
"""
