"""Promoted extra fields: responses have fields for chosen elements that the protocol does not define. Pure.

Rules:
- The cache, level 2 and the filters of cursors know elements by their names in `extra`: changed settings spoil none.
- A field is added to a masked call, from its masked `extra`: it never shows more than `extra` does.
- A field that is not personal is shown to every consumer, and so is its element in `extra`.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import Annotated, cast

import msgspec
from msgspec import Struct

from gateway.model import Call, about

ELEMENT = re.compile(r"@?[A-Za-z_][A-Za-z0-9_.@-]{0,127}")
CAMEL_CASE = re.compile("[a-z][A-Za-z0-9]{0,63}")
PERSONAL = "!personal"  # the ending of a field that only consumers with the scope `personal` see


class ExtraField(Struct, frozen=True):
    """A field `name` with the text of an element in `extra`."""

    element: str
    name: str
    personal: bool


class ExtraFields(Struct, frozen=True, dict=True):
    """The promoted fields, and the elements in `extra` that `GATEWAY_EXTRA_PUBLIC` names."""

    fields: tuple[ExtraField, ...] = ()
    named_public: frozenset[str] = frozenset()

    @cached_property
    def public(self) -> frozenset[str]:
        """The elements in `extra` that are not personal data."""
        return self.named_public | {field.element for field in self.fields if not field.personal}

    @cached_property
    def call_type(self) -> type[Call]:
        """The type of calls in responses: `Call` followed by the promoted fields."""
        if not self.fields:
            return Call
        fields = [(field.name, Annotated[str | None, _about(field)]) for field in self.fields]
        namespace = {"__doc__": Call.__doc__}
        return cast(
            type[Call],
            msgspec.defstruct("Call", fields, bases=(Call,), frozen=True, kw_only=True, gc=False, namespace=namespace),
        )

    def promote(self, call: Call) -> Call:
        """The call with the promoted fields."""
        if not self.fields:
            return call
        values = msgspec.structs.asdict(call)
        values |= {field.name: call.extra.get(field.element) for field in self.fields}
        return self.call_type(**values)


NO_EXTRAS = ExtraFields()


def _about(field: ExtraField) -> msgspec.Meta:
    scope = " Null without the scope `personal`." if field.personal else ""
    return about(f"The element `{field.element}` of the server's reply; it is in `extra` as well.{scope}", "A-17")


def parse_extra_fields(text: str) -> tuple[ExtraField, ...]:
    """Parse fields such as `CallerName:callerName!personal`, separated by commas. Raises ValueError."""
    fields = []
    for part in text.split(","):
        element, _, name = part.strip().partition(":")
        fields.append(ExtraField(element, name.removesuffix(PERSONAL), name.endswith(PERSONAL)))
    valid = all(ELEMENT.fullmatch(one.element) and CAMEL_CASE.fullmatch(one.name) for one in fields)
    names, elements = {one.name.lower() for one in fields}, {one.element for one in fields}  # SQL columns have no case
    unique = len(names) == len(elements) == len(fields)
    if not (valid and unique):
        raise ValueError(text)
    return tuple(fields)
