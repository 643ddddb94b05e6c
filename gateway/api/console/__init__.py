"""The web console at `/console`: a page for the people who work with calls, built on the public API alone.

Rules:
- `static` is built from `src` by `npm run build`, and committed, so that the wheel and `demo` need no Node.
- The page loads nothing from other hosts and has no inline script or style. A Content-Security-Policy enforces this.
  Its requests go to this gateway, and to the issuer's origin if people sign in with it.
"""

from __future__ import annotations

from html import escape
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from litestar import Request, Response, get
from litestar.datastructures import State
from litestar.exceptions import NotFoundException
from litestar.params import FromPath
from msgspec import Struct

from gateway.api import reference

STATIC = files("gateway.api.console") / "static"
MEDIA_TYPES = {"console.css": "text/css", "console.js": "text/javascript", "licences.txt": "text/plain"}


class Console(Struct, frozen=True):
    """The settings of the console. With `client_id`, people may sign in with the OIDC issuer at `issuer`."""

    issuer: str = ""
    client_id: str = ""


@get("/console", include_in_schema=False)
async def page(request: Request[Any, Any, State]) -> Response[str]:
    """The page of the console."""
    settings: Console = request.app.state.console
    text, origins = (STATIC / "index.html").read_text("utf-8"), []
    if settings.client_id:
        address = urlsplit(settings.issuer)
        origins.append(f"{address.scheme}://{address.netloc}")
        data = f'data-oidc-issuer="{escape(settings.issuer)}" data-oidc-client-id="{escape(settings.client_id)}"'
        text = text.replace("<html ", f"<html {data} ", 1)
    return reference.page(text, "text/html", *origins)


@get("/console/{name:str}", include_in_schema=False)
async def asset(name: FromPath[str]) -> Response[str]:
    """A script, a style sheet or the licences of the console."""
    if name not in MEDIA_TYPES:
        raise NotFoundException
    return reference.page((STATIC / name).read_text("utf-8"), MEDIA_TYPES[name])


HANDLERS = [page, asset]
