"""The HTTP interface: from a request to a query, and from calls to a response. The only package that imports Litestar.

Begin with `routes`, which builds the application, then a handler in `calls`: it parses its query (`query`,
`time_ranges`), reads the cache, and renders the response (`responses`, `exports`). `middleware` has the layers around
the handlers, `problems` the status code of every error, and `openapi` the API description. Not here: authorization and
masking (`gateway.access`), the cache (`gateway.cache`), and the formats of exports (`gateway.formats`).
"""
