"""The ASGI layers around Litestar.

From outermost to innermost: `request_context`, `cors`, `load_shedder`, `authentication`, `response_cache`,
`compression`. Begin with `request_context`: its `RequestContext` is the state that all layers and handlers share.
`routes.create_api` builds the stack. A layer does not know about calls or queries; handlers do. For a request that does
not concern it, a layer returns the awaitable of the next one, which costs no coroutine.
"""
