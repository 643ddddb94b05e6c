"""The cache of calls by point in time, in front of the upstream.

scans            a window span after span: a page, a stream, extents to count
reader           a read: look up extents, find gaps, fetch them, merge
aggregates       counts and talk time by bucket and group; pure
leases           single flight across replicas
level2           extents that replicas share
fetcher          the POSTs of a flight: batches, halves, missing codes
single_flight    POSTs in progress, shared by all readers that need them
client_profiles  how the upstream echoes each client, and its limits
memory           level 1: days of extents within a bound
freshness        which points are stale, and what to POST; pure
extents          windows of one client with the time of their POST; pure
"""
