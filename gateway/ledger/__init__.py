"""The cache that understands time.

pages       how far to read for a page
stream      a whole window, in bounded memory
reader      the plan of a read
readings    what a read found
figures     counts and talk time by bucket and group; pure
flights     POSTs under way, shared by all who need them
tickets     needs, flights, and the claims on them
claims      flights single across replicas
posts       the POSTs of one flight: batches, halves, what is missing
codes       what has been learned of client codes
memory      days of extents within a bound
level2      extents that replicas share
packing     extents as bytes and back; pure
freshness   which points are stale, and what to POST; pure
extents     windows of one client with the instant of their POST; pure
"""
