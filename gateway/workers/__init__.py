"""`serve --workers N`: several processes of the gateway on one machine, and the supervisor that is their parent.

Decisions:
- The supervisor loads the program, checks the settings, opens the sockets, then forks: a worker begins within a moment
  and shares the memory of what was loaded. It has no thread, and forks while its event loop stands still; nothing that
  lives in a loop is there before the fork. (`uvicorn.supervisors.Multiprocess` was weighed: it spawns, which needs an
  application that can be pickled, replaces workers without a pause between, and knows no drain and no sums.)
- Each worker has a listening socket of its own, all of one port (SO_REUSEPORT): of 64 connections opened at once
  between 25 and 40 came to the first of two workers. With one socket for both it was between 13 and 64. The supervisor
  keeps the sockets open, so that what waits for a worker that died is answered by the next one.
- Workers are to each other what replicas are: extents, flights and rates go through Redis or Valkey, by the code that
  does so for replicas. Without `GATEWAY_CACHE_URL` the supervisor runs a server of its own, on a Unix socket.
- What bounds the machine or the upstream is divided: POSTs at a time, requests at a time, bytes of the ledger. What
  guards a process is each worker's own: its breaker, its retries, exports of a consumer.
- Metrics are summed by the supervisor when somebody scrapes any worker. Each second a worker tells what it has
  counted, so that one that is killed takes a second of it along at most, and no counter ever goes down.
- Workers heed the supervisor, not signals: those often go to a whole group, and would count twice.
"""
