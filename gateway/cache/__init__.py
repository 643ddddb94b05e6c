"""The cache of calls by point in time. This package does not know HTTP, XML or consumers.

Begin reading with `reader`, which reads the calls of a window; `extents` and `freshness` are its arithmetic.

    reader           a read: look up extents, find gaps, fetch them, merge
    scans            a window read span after span: a page, a stream, extents to count
    missed           the callers with a missed call, and whether a later call reached them; pure
    watch            answers of the change feed, and readings that are refreshed once for all waiting consumers
    feed_reader      readings for the change feed: all calls of a feed, from its start until now
    feed             the changes between a consumer's copy and a reading; pure
    feed_state       a description of a consumer's copy, small enough for a token; pure
    fingerprints     sums of hashes of calls by hour; pure
    aggregates       counts and talk time by bucket and group; pure
    single_flight    POSTs in progress, shared by all reads that need them
    leases           single flight across replicas
    fetcher          the POSTs of a flight: batches, halves, missing codes
    replies          comparison of a reply with the calls already held: which replies are believed
    client_profiles  how the upstream echoes each client, and its limits
    level1           extents in process, within a bound of bytes
    level2           extents that replicas share in Redis or Valkey
    packed_calls     calls in compressed blocks; a read unpacks only the blocks that it needs; pure
    freshness        which points are stale, and which windows to POST; pure
    deduplication    the later version of a record that several extents have; pure
    extents          windows of one client with the time of their POST; pure
"""
