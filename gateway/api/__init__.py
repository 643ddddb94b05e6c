"""HTTP in, HTTP out: the only place that imports Litestar.

`routes` puts the application together: the handlers of `calls`, `summaries`, `recordings` and `reference`, and the
layers of `middleware` around them. A handler parses its query (`query`, `time_ranges`), reads the cache, and renders
(`responses`, `exports`). `negotiation` chooses the form, `signing` makes cursors and links, `problems` has the status
code of every error, and `openapi` describes it all.
"""
