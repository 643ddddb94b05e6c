"""One call detail record: a `Call` element of a reply to a Call. Pure.

Rules:
- Names of elements are compared without case and namespace. Values are trimmed, empty is None (T6, T7).
- What the document does not know goes to `extra`: elements, nested ones with dotted names, repeated ones joined by a
  newline; attributes after an @. Of a known element that comes twice the last counts, and `extra` has all.
- A value that is not one of the document's is `other`, seconds that are not a whole number are None; `extra` has the
  text of both.
- Speed: a record that `template` matched comes as values; of any other the layout (its elements' names, in order) is
  studied once, then its values are picked by place.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

from gateway.callbutton import central
from gateway.callbutton.template import ADDRESS, AFTER, BEFORE, STATUS
from gateway.model import Address, Call, PhoneType, Result, SalesStatus, Status

FIELDS = [*BEFORE, *AFTER]
KNOWN = frozenset((*FIELDS, "Address"))
ENVELOPE = (
    "Callbutton Username Authentication CallbuttonService GetCallDetailsResponse GetCallDetailResponse status Client "
    "ClientCode CallDetails Call ID".split()
)
CANONICAL = {name.lower(): name for name in (*KNOWN, *ADDRESS, *ENVELOPE)}
PHONE_TYPES = {None: PhoneType.NORMAL, "p": PhoneType.PAYPHONE, "c": PhoneType.CELL}
RESULTS = {
    "connected": Result.CONNECTED,
    "busy": Result.BUSY,
    "no answer": Result.NO_ANSWER,
    "abandoned": Result.ABANDONED,
}
SALES = {"called back": SalesStatus.CALLED_BACK, "made sale": SalesStatus.MADE_SALE}
REVIEWED = {"reviewed": True, "unreviewed": False}
NO_ADDRESS: tuple[str | None, ...] = (None,) * len(ADDRESS)
MOST_TEXTS = 50_000  # remembered, so that equal values are one object


@lru_cache(maxsize=4096)
def canonical(name: str) -> str:
    """The protocol document's spelling of an element's name, whatever its case or namespace."""
    bare = name.rpartition("}")[2]
    return CANONICAL.get(bare.lower(), bare)


def attribute(element: Element, name: str) -> str | None:
    """An attribute's value, whatever the case or namespace of its name."""
    return next((value for key, value in element.items() if canonical(key) == name), None)


def trimmed(text: str | None) -> str | None:
    """The text without white space around it; None if nothing is left."""
    return (text.strip() or None) if text else None


def own_text(element: Element) -> str | None:
    """All text of an element but that of elements in it, trimmed."""
    return trimmed("".join([element.text or "", *(child.tail or "" for child in element)]))


def words(text: str | None) -> str | None:
    """The text in lower case with single spaces, to compare with the values of the document."""
    return " ".join(text.lower().split()) if text else None


class Shape(NamedTuple):
    """Where the values of a record are: `pick` takes them in the order of the fields, absent ones from the end."""

    pick: itemgetter[Any]
    address: int | None
    odd: bool  # unknown or repeated elements


@lru_cache(maxsize=1000)
def study(tags: tuple[str, ...], *, address: bool) -> Shape:
    """Study the layout of a record, or of its address."""
    fields, known = (ADDRESS, frozenset(ADDRESS)) if address else (FIELDS, KNOWN)
    names = [canonical(tag) for tag in tags]
    places = {name: place for place, name in enumerate(names)}
    pick = itemgetter(*(places.get(field, len(names)) for field in fields))
    return Shape(pick, places.get("Address"), len(places) != len(names) or not known.issuperset(names))


def _layout(element: Element, *, address: bool) -> tuple[Shape, list[str | None]]:
    """Find the shape of an element, and the trimmed texts of its children with a None after them."""
    shape = study(tuple([child.tag for child in element]), address=address)
    texts: list[str | None] = [text and text.strip() for text in [child.text for child in element]]
    if any(map(len, element)):
        texts = [own_text(child) if len(child) else text for child, text in zip(element, texts, strict=True)]
    texts.append(None)
    return shape, texts


def _status(reviewed: str | None, sales: str | None, journal: str | None, extra: dict[str, str]) -> Status:
    sold = SALES.get(sales.lower()) or SALES.get(words(sales) or "") if sales else SalesStatus.NONE
    if sold is None:
        sold = SalesStatus.OTHER
        extra.setdefault("SalesStatus", sales or "")
    seen = REVIEWED.get(reviewed.lower()) if reviewed else False
    if seen is None:
        seen = False
        extra.setdefault("ReviewedStatus", reviewed or "")
    return Status(reviewed=seen, sales=sold, journal=journal or None)


class RecordReader:
    """Reads the records of one reply; `unknown` counts elements and attributes that the document does not know."""

    def __init__(self, *, status: bool) -> None:
        self.unknown = 0
        self.status_seen = False
        self._status = status
        self._texts: dict[str, str] = {}

    def read(self, element: Element, code: str) -> Call | None:
        """Read a record of a client code; None if it has no id or no readable StartTime."""
        attributes = element.attrib
        identity = trimmed(attributes.get("ID") or attribute(element, "ID"))
        shape, texts = _layout(element, address=False)
        extra: dict[str, str] = {}
        address = None if shape.address is None else element[shape.address]
        nested = sum(map(len, element))
        if shape.odd or len(attributes) > 1 or nested != (0 if address is None else len(address)):
            self._keep_unknown(element, address, extra)
        if not self.status_seen:
            self.status_seen = not STATUS.isdisjoint(canonical(child.tag) for child in element)
        picked: tuple[str | None, ...] = shape.pick(texts)
        before, after = picked[: len(BEFORE)], picked[len(BEFORE) :]
        return self.make([identity, *before, *self._address(address, extra), *after], code, extra)

    def _address(self, element: Element | None, extra: dict[str, str]) -> tuple[str | None, ...]:
        if element is None:
            return NO_ADDRESS
        shape, texts = _layout(element, address=True)
        if shape.odd or any(map(len, element)):
            self._keep_children(element, ADDRESS, "Address.", extra)
        picked: tuple[str | None, ...] = shape.pick(texts)
        return picked

    def make(self, values: list[str | None], code: str, extra: dict[str, str]) -> Call | None:
        """Make a call of trimmed values: the id, then in the document's order; None without id or StartTime."""
        # fmt: off
        (identity, start, campaign, did, ani, other, digits, target, result, duration, talk, index, voice,
         first, middle, last, street, secondary, city, state, postal, postal4,
         reviewed, dtmf, sales, journal) = values
        # fmt: on
        if not identity or not start:
            return None
        try:
            start_time, certainty = central.read_wall(start)
        except ValueError:
            return None
        keep = self._texts.setdefault
        if len(self._texts) > MOST_TEXTS:
            self._texts.clear()
        outcome = RESULTS.get(result.lower()) or RESULTS.get(words(result) or "") if result else Result.OTHER
        if outcome is None:
            outcome = Result.OTHER
            extra.setdefault("Result", result or "")
        phone_type = PHONE_TYPES.get(digits.lower() if digits else None)
        if phone_type is None:
            phone_type = PhoneType.OTHER
            extra.setdefault("InfoDigits", digits or "")
        if first or last or street or city or postal or middle or secondary or state or postal4:
            address = Address(
                first_name=keep(first, first) if first else None,
                middle_initial=keep(middle, middle) if middle else None,
                last_name=keep(last, last) if last else None,
                street=street or None,
                secondary=secondary or None,
                city=keep(city, city) if city else None,
                state=keep(state, state) if state else None,
                zip=keep(postal, postal) if postal else None,
                zip4=postal4 or None,
            )
        else:
            address = None
        if self._status:
            if reviewed is not None or sales is not None or journal is not None:
                self.status_seen = True
            status = _status(reviewed, sales, journal, extra)
        else:
            status = None
        return Call(
            id=identity,
            client_code=code,
            start_time=start_time,
            start_time_certainty=certainty,
            campaign=keep(campaign, campaign) if campaign else None,
            did=keep(did, did) if did else None,
            ani=ani or None,
            other_data=keep(other, other) if other else None,
            phone_type=phone_type,
            target=keep(target, target) if target else None,
            result=outcome,
            duration_seconds=seconds("Duration", duration, extra) if duration else None,
            talk_time_seconds=seconds("TalkTime", talk, extra) if talk else None,
            index_number=keep(index, index) if index else None,
            dtmf=keep(dtmf, dtmf) if dtmf else None,
            recording_url=voice or None,
            address=address,
            status=status,
            extra=extra,
        )

    def _keep_unknown(self, element: Element, address: Element | None, extra: dict[str, str]) -> None:
        self._keep_children(element, FIELDS, "", extra)
        for child in element:  # of several addresses the last counts
            if child is not address and canonical(child.tag) == "Address":
                self._keep("Address", child, extra)
        for name, value in element.items():
            if canonical(name) != "ID":
                self.unknown += 1
                join(extra, f"@{name}", trimmed(value))

    def _keep_children(self, element: Element, fields: list[str], prefix: str, extra: dict[str, str]) -> None:
        """Keep the children that are not among the fields, all values of repeated ones, and what is nested in any."""
        counts = Counter(canonical(child.tag) for child in element)
        for child in element:
            name = canonical(child.tag)
            if name == "Address" and not prefix:
                continue
            if name not in fields:
                self._keep(prefix + name, child, extra)
                continue
            if counts[name] > 1 and (self._status or name not in STATUS):
                join(extra, prefix + name, own_text(child))
            for inner in child:
                self._keep(f"{prefix}{name}.{inner.tag.rpartition('}')[2]}", inner, extra)

    def _keep(self, name: str, element: Element, extra: dict[str, str]) -> None:
        self.unknown += 1
        join(extra, name, own_text(element))
        for key, value in element.items():
            join(extra, f"{name}.@{key}", trimmed(value))
        for child in element:
            self._keep(f"{name}.{child.tag.rpartition('}')[2]}", child, extra)


def join(extra: dict[str, str], name: str, text: str | None) -> None:
    """Add a text to what `extra` has under a name."""
    if text is not None:
        extra[name] = f"{extra[name]}\n{text}" if name in extra else text


def seconds(name: str, text: str, extra: dict[str, str]) -> int | None:
    """A whole number of seconds; None, with the text in `extra`, for anything else."""
    if text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    extra.setdefault(name, text)
    return None
