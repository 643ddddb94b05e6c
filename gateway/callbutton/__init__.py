"""The upstream: the only place that knows XML or Central Time.

`service` POSTs and counts, `transport` keeps the time-outs, `wire` renders requests and reads replies, `charset` turns
bytes into legal XML text, `central` turns wall time into UTC and back. The last three are pure.
"""
