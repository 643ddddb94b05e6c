"""Dimensions: what summaries are grouped by. One table: how a value is read, its JSON schema, the scope it needs.

Each promoted extra field is a dimension as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from gateway.api.calendars import CLOCKS
from gateway.cache.aggregates import GroupsOf, Value
from gateway.extra_fields import NO_EXTRAS, ExtraFields
from gateway.model import Call, text_reader

NORTH_AMERICAN = re.compile(r"\+?1?([2-9][0-9]{2})[2-9][0-9]{6}", re.ASCII)


class Dimension(NamedTuple):
    """A dimension. `read` returns its value of a call; it is None if the value follows from the clock.

    `values` are the minimum and maximum of a number. A consumer without `scope` may not group by it.
    """

    read: Callable[[Call], Value] | None
    description: str
    example: Value
    values: tuple[int, int] | None = None
    scope: str | None = None

    @property
    def schema(self) -> dict[str, Any]:
        """Its JSON schema."""
        scope = f" Requires the scope `{self.scope}`." if self.scope else ""
        described: dict[str, Any] = {"description": self.description + scope, "examples": [self.example]}
        if self.values is None:
            return {"type": ["string", "null"]} | described
        return {"type": "integer", "minimum": self.values[0], "maximum": self.values[1]} | described


def _area_code(call: Call) -> str | None:
    match = NORTH_AMERICAN.fullmatch(call.ani or "")
    return match[1] if match else None


DIMENSIONS: dict[str, Dimension] = {
    "result": Dimension(lambda call: str(call.result), "The result.", "connected"),
    "campaign": Dimension(attrgetter("campaign"), "The id of the campaign.", "4018"),
    "did": Dimension(attrgetter("did"), "The tracking number.", "8005550100"),
    "target": Dimension(attrgetter("target"), "The number that the calls were forwarded to.", "7735550158"),
    "phoneType": Dimension(lambda call: str(call.phone_type), "The type of phone.", "cell"),
    "client": Dimension(attrgetter("client_code"), "The client code.", "8005550100"),
    "state": Dimension(
        lambda call: call.address.state if call.address else None, "The state or province.", "IL", scope="personal"
    ),
    "areaCode": Dimension(_area_code, "The area code of a North American number.", "312", scope="personal"),
    "sales": Dimension(
        lambda call: str(call.status.sales) if call.status else None, "The sales status.", "made_sale", scope="status"
    ),
    "hourOfDay": Dimension(None, "The hour on the clock.", 14, (0, 23)),
    "dayOfWeek": Dimension(None, "The day of the week, from Monday (1) to Sunday (7).", 1, (1, 7)),
    "hourOfWeek": Dimension(
        None, "The hour of the week, from Monday at midnight: `24 * (dayOfWeek - 1) + hourOfDay`.", 14, (0, 167)
    ),
}


def dimensions_of(extras: ExtraFields) -> dict[str, Dimension]:
    """The dimensions by name, with the promoted extra fields."""
    return DIMENSIONS | {
        one.name: Dimension(
            text_reader(f"extra.{one.element}"),
            f"The element `{one.element}` of the server's reply.",
            "A-17",
            scope="personal" if one.personal else None,
        )
        for one in extras.fields
    }


def reader(names: Sequence[str], extras: ExtraFields = NO_EXTRAS) -> GroupsOf | None:
    """A function that reads the dimensions of calls; None if all of them follow from the clock."""
    known = dimensions_of(extras)
    reads = [read for name in names if (read := known[name].read)]
    return (lambda calls: zip(*[map(read, calls) for read in reads], strict=True)) if reads else None


def clocks_of(names: Sequence[str]) -> tuple[str, ...]:
    """Those of the dimensions that are read from the clock."""
    return tuple(name for name in names if name in CLOCKS)
