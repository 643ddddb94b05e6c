"""The HTML pages: the interactive API reference at `/docs`, and a page for each type of problem.

Rules:
- The pages load nothing from other hosts and have no inline script or style. A Content-Security-Policy enforces this.
- Links are relative, so that the pages work behind an ingress path.
- `/docs` is written by hand: 25 kB, where a bundle such as Swagger UI has 1.5 MB.
"""

from __future__ import annotations

import re
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from litestar import Request, Response, get
from litestar.datastructures import State
from litestar.exceptions import NotFoundException
from litestar.params import FromPath

from gateway.api import problems

ASSETS = files("gateway.api") / "assets"
MEDIA_TYPES = {"docs.css": "text/css", "docs.js": "text/javascript", "icon.svg": "image/svg+xml"}


def page_headers(*origins: str) -> dict[str, str]:
    """The headers of a page, which sends requests to this gateway and to the given origins alone."""
    connect = " ".join(["'self'", *origins])
    return {
        "Cache-Control": "public, max-age=300",
        "Vary": "Origin",
        "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        f"media-src 'self' blob:; connect-src {connect}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "Cross-Origin-Opener-Policy": "same-origin",
    }


@get("/", include_in_schema=False)
async def index(request: Request[Any, Any, State]) -> Response[bytes]:
    """Redirect to the console, or without it to the API reference."""
    target = "console" if request.app.state.console else "docs"
    return Response(b"", status_code=302, headers=page_headers() | {"Location": target})


@get("/docs", include_in_schema=False)
async def docs() -> Response[str]:
    """The interactive API reference."""
    return page((ASSETS / "docs.html").read_text("utf-8"), "text/html")


@get("/docs/{name:str}", include_in_schema=False)
async def docs_asset(name: FromPath[str]) -> Response[str]:
    """A style sheet, script or icon of the pages."""
    if name not in MEDIA_TYPES:
        raise NotFoundException
    return page((ASSETS / name).read_text("utf-8"), MEDIA_TYPES[name])


@get("/problems/{name:str}", include_in_schema=False)
async def problem_page(name: FromPath[str]) -> Response[str]:
    """The page of a type of problem: its meaning and its hint."""
    kind = problems.BY_NAME.get(name)
    if kind is None:
        raise NotFoundException
    shown = {field: _prose(str(value)) for field, value in kind._asdict().items()}
    return page(Template((ASSETS / "problem.html").read_text("utf-8")).substitute(shown), "text/html")


def page(text: str, media_type: str, *origins: str) -> Response[str]:
    """A page or a part of one, which may send requests to `origins` besides this gateway."""
    return Response(text, media_type=media_type, headers=page_headers(*origins))


def _prose(text: str) -> str:
    """Render text as HTML, with `code` as an element."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))


HANDLERS = [index, docs, docs_asset, problem_page]
