"""The filters of a query. They apply to calls before masking; `access` decides which ones a consumer may use. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

from msgspec import Struct

from gateway.model import Call, CallResult, PhoneType

TEXT_FILTERS = ("campaign", "did", "ani", "target")


class Filters(Struct, frozen=True, array_like=True):
    """The filters of a query. Empty and None do not filter."""

    result: tuple[CallResult, ...] = ()
    phone_type: tuple[PhoneType, ...] = ()
    campaign: str | None = None
    did: str | None = None
    ani: str | None = None
    target: str | None = None
    recorded: bool | None = None
    min_duration: int | None = None

    @property
    def texts(self) -> dict[str, str]:
        """The text filters that are set, by field name."""
        return {name: text for name in TEXT_FILTERS if (text := getattr(self, name)) is not None}

    def apply(self, calls: Sequence[Call]) -> Sequence[Call]:
        """The calls that pass all filters."""
        if (results := self.result) and calls:
            calls = [call for call in calls if call.result in results]
        if (types := self.phone_type) and calls:
            calls = [call for call in calls if call.phone_type in types]
        for name, wanted in self.texts.items():
            field = _TEXT_OF[name]
            calls = [call for call in calls if field(call) == wanted]
        if (recorded := self.recorded) is not None:
            calls = [call for call in calls if (call.recording_url is not None) == recorded]
        if (shortest := self.min_duration) is not None:
            calls = [call for call in calls if (seconds := call.duration_seconds) is not None and seconds >= shortest]
        return calls


_TEXT_OF: dict[str, Callable[[Call], str | None]] = {name: attrgetter(name) for name in TEXT_FILTERS}
NO_FILTERS = Filters()


def make_filters(values: Mapping[str, Any]) -> Filters:
    """The filters among parsed values."""
    return Filters(
        result=values.get("result", ()),
        phone_type=values.get("phoneType", ()),
        recorded=values.get("recorded"),
        min_duration=values.get("minDuration"),
        **{name: values.get(name) for name in TEXT_FILTERS},
    )
