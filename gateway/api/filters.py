"""The filters of a query. They apply to calls before masking; `access` decides which ones a consumer may use. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from gateway.extra_fields import ExtraFields
from gateway.model import Call, CallResult, PhoneType, text_reader

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
    extra: tuple[tuple[str, str], ...] = ()  # elements and their texts

    @property
    def texts(self) -> dict[str, str]:
        """The text filters that are set, by field (`model.text_reader`)."""
        texts = {name: text for name in TEXT_FILTERS if (text := getattr(self, name)) is not None}
        return texts | {f"extra.{element}": text for element, text in self.extra}

    def apply(self, calls: Sequence[Call]) -> Sequence[Call]:
        """The calls that pass all filters."""
        if (results := self.result) and calls:
            calls = [call for call in calls if call.result in results]
        if (types := self.phone_type) and calls:
            calls = [call for call in calls if call.phone_type in types]
        for name, wanted in self.texts.items():
            field = text_reader(name)
            calls = [call for call in calls if field(call) == wanted]
        if (recorded := self.recorded) is not None:
            calls = [call for call in calls if (call.recording_url is not None) == recorded]
        if (shortest := self.min_duration) is not None:
            calls = [call for call in calls if (seconds := call.duration_seconds) is not None and seconds >= shortest]
        return calls


NO_FILTERS = Filters()


def make_filters(values: Mapping[str, Any], extras: ExtraFields) -> Filters:
    """The filters among parsed values."""
    return Filters(
        result=values.get("result", ()),
        phone_type=values.get("phoneType", ()),
        recorded=values.get("recorded"),
        min_duration=values.get("minDuration"),
        extra=tuple([(one.element, values[one.name]) for one in extras.fields if one.name in values]),
        **{name: values.get(name) for name in TEXT_FILTERS},
    )
