"""The query of a list of calls or of missed callers, and the cursors of its pages.

Rules:
- A cursor holds the query of the next page, so it is complete without other parameters, unless these are too long.
- Parameters that are sent with a cursor must be equal to those of its query. The client alone, defaults and empty
  values may come with any cursor, because generated clients always send them.
- A cursor is encrypted, because queries contain telephone numbers and proxies log URLs. AES-SIV (RFC 5297) needs no
  nonce: equal pages have equal cursors.
"""

from __future__ import annotations

import base64
import hashlib
import math
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gateway.api.filters import NO_FILTERS, Filters, make_filters
from gateway.api.query import DEFAULTS, UTC, Parameters
from gateway.api.signing import SigningKeys
from gateway.cache.scans import Position
from gateway.errors import InvalidParameters, ParameterFault
from gateway.extra_fields import NO_EXTRAS, ExtraFields
from gateway.formats import columns_of, fields_of
from gateway.model import Window

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESSIV

MAX_CURSOR = 1024  # characters; the headers of an answer, `Link` among them, have 4 kB in nginx
DIGEST_SIZE = 12  # bytes; enough to tell lists apart, as the cursor around it cannot be forged
# The parameters that need one format: their attribute of a query, and the format.
FORM_OF = {
    "limit": ("limit", "json"),
    "cursor": ("after", "json"),
    "dialect": ("dialect", "csv"),
    "meta": ("meta", "ndjson"),
}


class ListQuery(Struct, frozen=True, array_like=True):
    """A list of calls, or of missed callers, after the position `after`.

    `digest` is a hash of the request's parameters. In lists of missed callers, `reached` includes callers that were
    reached since, and `after_reached` is true if the caller at `after` was.
    """

    codes: tuple[str, ...]
    window: Window
    status: bool
    newest_first: bool
    limit: int
    filters: Filters
    fields: tuple[str, ...]
    format: str | None
    zone: str
    dialect: str | None
    meta: str | None
    digest: bytes
    after: Position | None = None
    route: str = "list"
    reached: bool = False
    after_reached: bool = False

    def require_format(self, form: str) -> None:
        """Check that the query can be answered in a format. Raises InvalidParameters."""
        faults = [
            ParameterFault(name, f"cannot be combined with {form}, only with {needed}")
            for name, (attribute, needed) in FORM_OF.items()
            if form != needed and getattr(self, attribute) not in (None, DEFAULTS.get(name))
        ]
        if faults:
            raise InvalidParameters(faults)


_encoder, _decoder = msgspec.msgpack.Encoder(enc_hook=str), msgspec.msgpack.Decoder(ListQuery)


def parse_list_query(
    query_string: bytes,
    code: str | None,
    now: float,
    history_start: int,
    signing_keys: SigningKeys,
    route: str = "list",
    extras: ExtraFields = NO_EXTRAS,
) -> ListQuery:
    """Parse the query of a list of calls, or with the route `missed` of missed callers. Raises InvalidParameters.

    `code` is the client in the path, if there is one.
    """
    parameters = Parameters(query_string, route, code, extras)
    cursor = parameters.values.pop("cursor", None)
    if cursor is not None:
        return _parse_cursor(cursor, parameters, signing_keys)
    parameters.require_client()
    window = parameters.window(now, history_start, needs_start=route == "missed")
    if grace := parameters.values.get("grace", 0):
        window = Window(window.start, max(window.start, min(window.end, math.floor(now) - grace + 1)))
    return _list_query(window, parameters)


def render_cursor(query: ListQuery, after: Position, signing_keys: SigningKeys) -> tuple[str, bool]:
    """Render the cursor of the page after a position, and whether it is complete without other parameters."""
    whole = _seal(replace(query, after=after), signing_keys)
    if len(whole) <= MAX_CURSOR:
        return whole, True
    return _seal(replace(query, codes=(), filters=NO_FILTERS, fields=(), after=after), signing_keys), False


def _parse_cursor(text: str, parameters: Parameters, signing_keys: SigningKeys) -> ListQuery:
    try:
        cursor = _open(text, signing_keys)
    except ValueError:
        parameters.fault("cursor", "is not a cursor of this gateway; start again from the first page")
    values = parameters.checked()
    if cursor.route != parameters.route:
        parameters.fault("cursor", "belongs to a list of another path")
    if not {*cursor.fields} <= {*fields_of(columns_of(parameters.extras.call_type))}:
        parameters.fault("cursor", "names a field that this gateway no longer has; start again from the first page")
    if not cursor.codes:
        query = replace(_list_query(cursor.window, parameters), after=cursor.after, after_reached=cursor.after_reached)
        if query.digest != cursor.digest:
            parameters.fault("cursor", "does not contain the long parameters of its list; send them with it")
    else:
        query, beside = cursor, {"client": cursor.codes} | values
        alone = _compared(beside).keys() == {"client"} and beside["client"] == cursor.codes
        if not alone and _digest(beside) != cursor.digest:
            parameters.fault("cursor", "belongs to a list with other parameters; send it without them")
    parameters.checked()
    return query


def _compared(values: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that must be equal beside a cursor. Every page with a cursor is JSON."""
    return {name: value for name, value in values.items() if (name, value) != ("format", "json")}


def _digest(values: Mapping[str, Any]) -> bytes:
    return hashlib.blake2b(_encoder.encode(sorted(_compared(values).items())), digest_size=DIGEST_SIZE).digest()


def _list_query(window: Window, parameters: Parameters) -> ListQuery:
    values = parameters.checked()
    return ListQuery(
        codes=values.get("client", ()),
        window=window,
        status="include" in values,
        newest_first="sort" not in values,
        limit=values.get("limit", DEFAULTS["limit"]),
        filters=make_filters(values, parameters.extras),
        fields=values.get("fields", ()),
        format=values.get("format"),
        zone=str(values.get("tz", UTC)),
        dialect=values.get("dialect"),
        meta=values.get("meta"),
        digest=_digest(values),
        route=parameters.route,
        reached=values.get("reached", False),
    )


def _seal(query: ListQuery, keys: SigningKeys) -> str:
    return _to_text(_cipher(keys[0]).encrypt(zlib.compress(_encoder.encode(query), 9), None))


def _open(text: str, keys: SigningKeys) -> ListQuery:
    """Parse the result of `_seal` with one of the keys. Raises ValueError for any other text."""
    sealed = base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    if _to_text(sealed) != text:  # the decoder ignores other characters
        raise ValueError("the text is not base64 as this gateway writes it")
    from cryptography.exceptions import InvalidTag  # loaded with the first cursor: it takes time and memory

    for key in keys:
        try:
            return _decoder.decode(zlib.decompress(_cipher(key).decrypt(sealed, None)))
        except InvalidTag:
            continue
        except msgspec.MsgspecError as error:
            raise ValueError("the cursor was made by another version") from error
    raise ValueError("the cursor was not made with these keys")


def _to_text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


@lru_cache(maxsize=16)
def _cipher(key: bytes) -> AESSIV:
    from cryptography.hazmat.primitives.ciphers.aead import AESSIV

    return AESSIV(hashlib.blake2b(key=hashlib.sha256(key).digest(), digest_size=64, person=b"cursor").digest())
