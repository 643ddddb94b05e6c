"""The cache that understands time.

`extents` are windows of one client with the instant of their POST; `freshness` says which points are stale and what
to POST; `memory` holds days of extents within a bound; `flights` are POSTs under way, shared; `reader` is the plan of
a read. Extents and freshness are pure.
"""
