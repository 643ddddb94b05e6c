"""The ASGI layers around Litestar.

From outermost to innermost: `request_context`, `cors`, `load_shedder`, `authentication`, `response_cache`, `head`,
`compression`. Begin with `request_context`: its `RequestContext` is the state that all layers and handlers share.
`routes.create_api` builds the stack. A layer does not know about calls or queries; handlers do. A layer that a request does not concern returns the
awaitable of the next layer, and costs no coroutine.
"""
