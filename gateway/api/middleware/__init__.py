"""ASGI layers around Litestar, from the outside in.

`request_context`, `cors`, `load_shedder`, `authentication`, `response_cache`, `head`, `compression`. No layer
knows about calls. A request that does not concern a layer passes without work: the layer returns the awaitable of the
next one. Layers share the request's `RequestContext`.
"""
