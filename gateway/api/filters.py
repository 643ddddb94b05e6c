"""Filters of calls: what they are asked with, and the function that keeps the calls that fit.

Rule: a filter sees calls as the upstream told them, before anything is masked; who may filter by what is decided in
`access`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from operator import attrgetter
from typing import TypeVar

from msgspec import Struct

from gateway.errors import ParameterFault
from gateway.model import Call, PhoneType, Result

TEXTS = ("campaign", "did", "ani", "target")
MOST_TEXT = 200  # characters
_Kind = TypeVar("_Kind", bound=Enum)


class Filters(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What calls must be; what is empty or None does not matter."""

    result: tuple[Result, ...] = ()
    phone_type: tuple[PhoneType, ...] = ()
    campaign: str | None = None
    did: str | None = None
    ani: str | None = None
    target: str | None = None
    recorded: bool | None = None
    min_duration: int | None = None

    @property
    def texts(self) -> dict[str, str]:
        """The texts that a call must have, by the names of fields."""
        return {name: text for name in TEXTS if (text := getattr(self, name)) is not None}

    def keep(self, calls: Sequence[Call]) -> Sequence[Call]:
        """The calls that fit."""
        if (results := self.result) and calls:
            calls = [call for call in calls if call.result in results]
        if (types := self.phone_type) and calls:
            calls = [call for call in calls if call.phone_type in types]
        for name, wanted in self.texts.items():
            read = _readers[name]
            calls = [call for call in calls if read(call) == wanted]
        if (recorded := self.recorded) is not None:
            calls = [call for call in calls if (call.recording_url is not None) == recorded]
        if (least := self.min_duration) is not None:
            calls = [call for call in calls if (seconds := call.duration_seconds) is not None and seconds >= least]
        return calls


_readers: dict[str, Callable[[Call], str | None]] = {name: attrgetter(name) for name in TEXTS}
NO_FILTERS = Filters()


def read_filters(single: Mapping[str, str], faults: list[ParameterFault]) -> Filters:
    """Read the filters among parameters."""
    detail = f"is empty or longer than {MOST_TEXT} characters"
    faults += [ParameterFault(name, detail) for name in TEXTS if not 0 < len(single.get(name, "-")) <= MOST_TEXT]
    recorded = single.get("recorded")
    if recorded not in (None, "true", "false"):
        faults.append(ParameterFault("recorded", "is neither true nor false"))
    least = single.get("minDuration")
    if least is not None and re.fullmatch(r"[0-9]{1,7}", least, re.ASCII) is None:
        faults.append(ParameterFault("minDuration", "is not a whole number of seconds, up to 9999999"))
        least = None
    return Filters(
        result=_kinds("result", Result, single, faults),
        phone_type=_kinds("phoneType", PhoneType, single, faults),
        recorded=None if recorded is None else recorded == "true",
        min_duration=None if least is None else int(least),
        **{name: single.get(name) for name in TEXTS},
    )


def _kinds(name: str, kind: type[_Kind], single: Mapping[str, str], faults: list[ParameterFault]) -> tuple[_Kind, ...]:
    if (text := single.get(name)) is None:
        return ()
    known = {one.value: one for one in kind}
    words = text.split(",")
    if any(word not in known for word in words):
        faults.append(ParameterFault(name, f"is none of {', '.join(known)}, nor some of them with commas"))
        return ()
    return tuple(dict.fromkeys(known[word] for word in words))
