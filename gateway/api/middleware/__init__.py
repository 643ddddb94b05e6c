"""ASGI layers around Litestar, from the outside in.

`request_context`, `cors`, `load_shedder`, `authentication`, `response_cache`, `head`, `compression`. Each layer knows
nothing of calls, and a request that does not concern it passes without work: it hands the awaitable of the next layer
on. What layers tell each other is in the request's `RequestContext`.
"""
