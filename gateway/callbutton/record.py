"""One call detail record: the texts of the elements in a `Call` element to a Call. Pure.

Rules:
- Texts come by key: an element's name in the document's spelling, `Address/City` for an element of the address, dotted
  names (`Carrier.Lata`, `Address.Country`) for everything that the document does not know. They are trimmed.
- An empty text is None (T6, T7).
- Texts of unknown elements go to `extra`; repeated ones are joined by a newline. Of a known element that comes twice
  the last counts, and `extra` has all.
- A value that is not one of the document's is `other`, seconds that are not a whole number are None; `extra` has the
  text of both.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from itertools import islice
from xml.etree.ElementTree import Element

from gateway.callbutton import central_time
from gateway.model import Call, CallerAddress, CallResult, CallStatus, PhoneType, SalesStatus, UnreadableCall

FIELDS = (
    "StartTime Campaign DID ANI OtherData InfoDigits Target Result Duration TalkTime IndexNumber VoiceDirectory "
    "Address ReviewedStatus DTMF SalesStatus Journal"
).split()
ADDRESS_FIELDS = "FirstName MiddleInitial LastName StreetAddress SecondaryAddress City State ZIP ZIP4".split()
STATUS_FIELDS = frozenset(("ReviewedStatus", "SalesStatus", "Journal"))
ADDRESS_KEYS = {name: f"Address/{name}" for name in ADDRESS_FIELDS}
EXTRA_NAMES = {key: f"Address.{name}" for name, key in ADDRESS_KEYS.items()}
# The texts of a record in which no element has come yet. `RecordReader.make` unpacks them in this order.
NO_TEXTS: dict[str, str | None] = dict.fromkeys((*FIELDS, *ADDRESS_KEYS.values()))
PHONE_TYPES = {"": PhoneType.NORMAL, "p": PhoneType.PAYPHONE, "c": PhoneType.CELL}
RESULTS = {
    "connected": CallResult.CONNECTED,
    "busy": CallResult.BUSY,
    "no answer": CallResult.NO_ANSWER,
    "abandoned": CallResult.ABANDONED,
}
SALES = {"": SalesStatus.NONE, "called back": SalesStatus.CALLED_BACK, "made sale": SalesStatus.MADE_SALE}
REVIEWED = {"": False, "reviewed": True, "unreviewed": False}
SECONDS = {str(seconds): seconds for seconds in range(3600)}  # most calls take less than an hour
NO_STATUS = CallStatus(reviewed=False, sales=SalesStatus.NONE, journal=None)
ENVELOPE = (
    "Callbutton Username Authentication CallbuttonService GetCallDetailsResponse GetCallDetailResponse status Client "
    "ClientCode CallDetails Call ID"
).split()
SPELLINGS = {spelled: name for name in (*FIELDS, *ADDRESS_FIELDS, *ENVELOPE) for spelled in (name, name.lower())}
MIN_DIGITS = 4  # of a date, as in 1/2/09 or 01-JUN-09
MAX_FORM = 40  # characters
KEPT_WORDS = ("AM", "PM", "T", "Z")  # of a date and time in another form; others may be anything
EARLIEST, LATEST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
NO_ID = "?"  # begins the names of records without an id
MAX_DEPTH = 40  # levels in an element of a record; the protocol has one
MAX_ID = 200  # characters; the longest id of the contract; a cursor holds one id
MAX_NAMES = 1000  # spellings of names that are remembered for one reply
MAX_SHARED_TEXTS = 50_000  # texts of one reply that are kept so that equal values are one object


def canonical(name: str) -> str:
    """The document's spelling of a name, whatever its case or namespace."""
    if name in SPELLINGS:
        return SPELLINGS[name]
    bare = name.rpartition("}")[2]
    return SPELLINGS.get(bare.lower(), bare)


def attribute(element: Element, name: str) -> str:
    """The trimmed value of an attribute, whatever the case or namespace of its name; empty without one."""
    return next((value.strip() for key, value in element.items() if canonical(key) == name), "")


def keep_attributes(element: Element, key: str, earlier: dict[str, list[str]]) -> None:
    """Keep the attributes of an element that the document does not know."""
    for name, value in element.items():
        earlier.setdefault(f"{key}.@{name}", []).append(value.strip())


Texts = dict[str, str | None]


class Keys(dict[str, str]):
    """The keys of elements by their names as they are spelled in one reply."""

    def __init__(self, fields: dict[str, str], unknown: str) -> None:
        super().__init__(fields)
        self._fields = fields
        self._unknown = unknown

    def __missing__(self, name: str) -> str:
        """Find the key of a name that was not met yet."""
        known = canonical(name)
        key = self._fields.get(known) or self._unknown + known
        if len(self) < MAX_NAMES:
            self[name] = key
        return key


class RecordReader:
    """Reads the records of one reply.

    `unknown` counts the elements that the document does not know. `status_seen` is set once a record has an element
    that the status flag asks for. `other_form` is the form of the first StartTime that is not in the document's.
    """

    def __init__(self, *, status: bool) -> None:
        self.unknown = 0
        self.status_seen = False
        self.other_form = ""
        self._status = status
        self._shared: dict[str, str] = {}
        self._call_keys = Keys({name: name for name in FIELDS}, "")
        self._address_keys = Keys(ADDRESS_KEYS, "Address.")

    def read(self, element: Element, code: str) -> Call | UnreadableCall:
        """The call of a `Call` element, by the client code that it stands under.

        Raises ValueError if elements are nested too deeply.
        """
        identity = (element.get("ID") or attribute(element, "ID")).strip()
        identity = identity if len(identity) <= MAX_ID else ""
        texts, earlier = NO_TEXTS.copy(), dict[str, list[str]]()
        if len(element.keys()) > 1 or not identity:
            others = [(name, value) for name, value in element.items() if canonical(name) != "ID"]
            self.unknown += len(others)
            earlier |= {f"@{name}": [value.strip()] for name, value in others}
        self._gather(element, self._call_keys, texts, earlier)
        return self.make(identity, code, texts, earlier)

    def _gather(self, element: Element, keys: Keys, texts: Texts, earlier: dict[str, list[str]]) -> None:
        """Put the texts of the elements in a record, or in its address, under their keys."""
        for child in element:
            key = keys[child.tag]
            if len(child) or key == "Address":
                self._gather_nested(child, key, texts, earlier)
                continue
            if (before := texts.get(key)) is not None:
                earlier.setdefault(key, []).append(before)
            text = child.text
            texts[key] = text.strip() if text else ""
            if key not in NO_TEXTS and child.keys():
                keep_attributes(child, key, earlier)

    def _gather_nested(
        self, element: Element, key: str, texts: Texts, earlier: dict[str, list[str]], depth: int = 0
    ) -> None:
        """Put the text of an element, and those of the elements in it under dotted keys."""
        if key == "Address":
            self._begin_address(texts, earlier)
            self._gather(element, self._address_keys, texts, earlier)
            return
        if depth > MAX_DEPTH:
            raise ValueError("is nested too deeply")
        if (before := texts.get(key)) is not None:
            earlier.setdefault(key, []).append(before)
        texts[key] = "".join([element.text or "", *(child.tail or "" for child in element)]).strip()
        if key in STATUS_FIELDS and not self._status:
            self.unknown += sum(1 for _ in element.iter()) - 1
            return
        if key not in NO_TEXTS:
            keep_attributes(element, key, earlier)
        for child in element:
            inner = f"{EXTRA_NAMES.get(key, key)}.{child.tag.rpartition('}')[2]}"
            self._gather_nested(child, inner, texts, earlier, depth + 1)

    def _begin_address(self, texts: Texts, earlier: dict[str, list[str]]) -> None:
        if texts["Address"] is not None:  # of several addresses the last counts
            self.unknown += 1
            for key in ADDRESS_KEYS.values():
                if (text := texts[key]) is not None:
                    self.unknown += 1
                    earlier.setdefault(key, []).append(text)
                    texts[key] = None
        texts["Address"] = ""

    def make(self, identity: str, code: str, texts: Texts, earlier: dict[str, list[str]]) -> Call | UnreadableCall:
        """The call of a record's texts: a copy of NO_TEXTS that they were put into, and earlier ones by key."""
        # fmt: off
        (start, campaign, did, ani, other, digits, target, result, duration, talk, index, voice, _,
         reviewed, dtmf, sales, journal,
         first, middle, last, street, secondary, city, state, postal, postal4, *unknown) = texts.values()
        # fmt: on
        extra: dict[str, str] = {}
        if unknown or earlier:
            self.unknown += len(unknown)
            extra = {key: text for key, text in islice(texts.items(), len(NO_TEXTS), None) if text}
            if earlier:
                self._complete(extra, texts, earlier)
        status = None
        if self._status:
            if reviewed is not None or sales is not None or journal is not None:
                self.status_seen = True
                status = _status(reviewed or "", sales or "", journal, extra)
            elif self.status_seen:
                status = NO_STATUS
        try:
            start_time, certainty = central_time.parse_wall(start or "")
        except ValueError:
            self.other_form = self.other_form or _other_form(start or "")
            return UnreadableCall(identity or _digest(texts), code, EARLIEST, LATEST)
        if not identity:
            return UnreadableCall(_digest(texts), code, start_time, start_time)
        keep = self._shared.setdefault
        if len(self._shared) > MAX_SHARED_TEXTS:
            self._shared.clear()
        address = None
        if first or last or street or city or postal or middle or secondary or state or postal4:
            address = CallerAddress(
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
        return Call(
            id=identity,
            client_code=code,
            start_time=start_time,
            start_time_certainty=certainty,
            campaign=keep(campaign, campaign) if campaign else None,
            did=keep(did, did) if did else None,
            ani=ani or None,
            other_data=keep(other, other) if other else None,
            phone_type=PHONE_TYPES.get(digits.lower() if digits else "") or _other_phone_type(digits, extra),
            target=keep(target, target) if target else None,
            result=(RESULTS.get(result.lower()) if result else CallResult.OTHER) or _result(result, extra),
            duration_seconds=SECONDS[duration] if duration in SECONDS else _seconds("Duration", duration, extra),
            talk_time_seconds=SECONDS[talk] if talk in SECONDS else _seconds("TalkTime", talk, extra),
            index_number=keep(index, index) if index else None,
            dtmf=keep(dtmf, dtmf) if dtmf else None,
            recording_url=voice or None,
            address=address,
            status=status,
            extra=extra,
        )

    def _complete(self, extra: dict[str, str], texts: Texts, earlier: dict[str, list[str]]) -> None:
        """Add the texts of repeated elements and of attributes to `extra`."""
        texts_of: dict[str, list[str | None]] = {}
        for key, before in earlier.items():
            if key not in NO_TEXTS and "@" not in key:
                self.unknown += len(before)
            if self._status or key not in STATUS_FIELDS:
                name = EXTRA_NAMES.get(key, key)
                texts_of.setdefault(name, [] if name in earlier else [extra.get(name)]).extend(
                    (*before, texts.get(key))
                )
        for name, all_texts in texts_of.items():
            if joined := "\n".join(text for text in all_texts if text):
                extra[name] = joined


def _other_form(text: str) -> str:
    """The form of a date and time that is not in the document's, such as `00/00/0000 00:00 PM`; else empty.

    It has no digit or name of the text.
    """
    if central_time.WALL.fullmatch(text) or sum(map(str.isdigit, text)) < MIN_DIGITS:
        return ""
    words = re.sub(r"[^\W\d_]+", lambda word: word[0] if word[0].upper() in KEPT_WORDS else "x", text[:MAX_FORM])
    return re.sub(r"\d", "0", words)


def _digest(texts: Texts) -> str:
    """Name a record without an id by its texts, after a mark."""
    return NO_ID + hashlib.blake2b(repr(texts).encode(errors="replace"), digest_size=8).hexdigest()


def _other_phone_type(text: str | None, extra: dict[str, str]) -> PhoneType:
    extra.setdefault("InfoDigits", text or "")
    return PhoneType.OTHER


def _result(text: str | None, extra: dict[str, str]) -> CallResult:
    """A result that is not spelled as in the document: with other white space, or of another name."""
    result = RESULTS.get(_words(text or ""), CallResult.OTHER)
    if result is CallResult.OTHER:
        extra.setdefault("Result", text or "")
    return result


def _status(reviewed: str, sales: str, journal: str | None, extra: dict[str, str]) -> CallStatus:
    sold = SALES.get(sales.lower()) or SALES.get(_words(sales), SalesStatus.OTHER)
    if sold is SalesStatus.OTHER:
        extra.setdefault("SalesStatus", sales)
    seen = REVIEWED.get(reviewed.lower())
    if seen is None:
        extra.setdefault("ReviewedStatus", reviewed)
    return CallStatus(reviewed=seen or False, sales=sold, journal=journal or None)


def _seconds(name: str, text: str | None, extra: dict[str, str]) -> int | None:
    """A whole number of seconds; None, with the text in `extra`, for anything else."""
    if not text:
        return None
    if text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    extra.setdefault(name, text)
    return None


def _words(text: str) -> str:
    """The text in lower case with single spaces, to compare with the values of the document."""
    return " ".join(text.lower().split())
