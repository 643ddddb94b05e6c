"""A reply as the server wrote it, read by xmltodict: the evidence of the conformance report. Pure.

Rules:
- `reply` reads many forms alike. This module notes which of them the server uses.
- Values of calls are personal data. Ids, tracking numbers and times are kept to compare replies; all else is counted.
- A reply that is not well-formed is read again with the repairs of `text`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from datetime import datetime
from itertools import pairwise
from typing import Any, NamedTuple
from xml.parsers.expat import ExpatError

import xmltodict
from msgspec import Struct, field

from gateway.callbutton.central_time import HOUR, fold_near, gap_near, infer_folds, parse_wall
from gateway.callbutton.record import ADDRESS_FIELDS, FIELDS, STATUS_FIELDS, canonical
from gateway.callbutton.reply import RESPONSES
from gateway.callbutton.text import TextDecoder, charset_of
from gateway.model import StartTimeCertainty

MIN_STEPS = 8  # from one call to the next; nine calls in random order ascend in one of 362,880 cases
CLIENT_DEPTH = 4  # levels from the root to a Client
MAX_MESSAGE = 200  # characters
SECONDS = re.compile(r"\d{1,9}", re.ASCII)
SHORT_ZIP = re.compile(r"\d{3,4}", re.ASCII)  # 00501 to 09999 without leading zeros
ZERO_ZIP = re.compile(r"0\d{4}", re.ASCII)
Element = dict[str, Any]


class Record(NamedTuple):
    """A call with a readable StartTime. `end` is in seconds since 1970; None without a readable Duration."""

    code: str
    id: str
    did: str
    start: datetime
    certainty: StartTimeCertainty
    end: float | None


class Evidence(Struct):
    """The contents of a reply. `clients` has each Client element in order, `calls` is the number of Call elements.

    The topics of `counts`: `unknown`, `padded`, `status` and `misspelled` by the name of an element, `unreadable` (ID,
    StartTime), `zip` (`with zero`, `without zero`), `charset` of characters outside ASCII, `repair`.
    """

    response: str = ""
    verdict: str = ""
    message: str = ""
    calls: int = 0
    clients: list[tuple[str, list[Record]]] = []
    counts: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    @property
    def records(self) -> list[Record]:
        """All calls in the order of the reply."""
        return [record for _, records in self.clients for record in records]

    def by_code(self) -> dict[str, list[Record]]:
        """The calls of each client code, each id once."""
        found: dict[str, dict[str, Record]] = {}
        for code, records in self.clients:
            found.setdefault(code, {}).update((record.id, record) for record in records)
        return {code: list(records.values()) for code, records in found.items()}

    def steps(self) -> tuple[int, int]:
        """How often a call is later, and earlier, than the one before it, within client codes and at exact times."""
        times = [
            [record.start for record in records if record.certainty is StartTimeCertainty.EXACT]
            for records in self.by_code().values()
        ]
        pairs = [pair for starts in times for pair in pairwise(starts)]
        return sum(one < other for one, other in pairs), sum(one > other for one, other in pairs)


def is_calm(record: Record) -> bool:
    """Whether no clock change is within two hours of a call."""
    instant = int(record.start.timestamp())
    changes = *(fold_near(instant) or ()), gap_near(instant) or 0
    return record.certainty is StartTimeCertainty.EXACT and all(abs(instant - at) > 2 * HOUR for at in changes)


def ids_show_fold(records: list[Record]) -> bool:
    """Whether the ids of one client's calls ascend with exact times, and show calls of both passes of a fold."""
    if not all(record.id.isascii() and record.id.isdigit() for record in records):
        return False
    by_id = sorted(records, key=lambda record: int(record.id))
    exact = [record.start for record in by_id if record.certainty is StartTimeCertainty.EXACT]
    ascending = all(one <= other for one, other in pairwise(exact))
    return ascending and len(exact) > MIN_STEPS and bool(infer_folds([record.start for record in by_id]))


def parse_evidence(body: bytes, charset: str | None) -> Evidence:
    """Parse a whole reply, by the charset of its header. Raises ValueError if it cannot be read even after repairs."""
    decoder = TextDecoder(charset)
    text = decoder.decode(body, last=True)
    codec, _ = charset_of(body[:512], charset, Counter())
    try:
        evidence = _Reader().read(body, charset)
    except (ExpatError, LookupError, ValueError):
        try:
            evidence = _Reader().read(text, None)
        except ExpatError as error:
            raise ValueError("the reply is not XML") from error
        evidence.counts["repair"] += decoder.repairs or Counter(("unknown_charset",))
    if not text.isascii():
        evidence.counts["charset"][
            "windows-1252" if decoder.repairs["windows_1252"] or codec == "cp1252" else codec
        ] += 1
    return evidence


class _Reader:
    """Reads one reply."""

    def __init__(self) -> None:
        self._evidence = Evidence()
        self._counts = self._evidence.counts

    def read(self, document: bytes | str, charset: str | None) -> Evidence:
        """The evidence of a document. Raises ExpatError, LookupError, ValueError."""
        options: dict[str, Any] = {"force_list": True, "strip_whitespace": False}
        if isinstance(document, bytes):
            options["encoding"] = charset
        xmltodict.parse(document, item_depth=CLIENT_DEPTH, item_callback=self._take, **options)
        if not self._evidence.response:  # without a Client
            root = xmltodict.parse(document, **options)
            for name, response in _children(root, "Callbutton", "CallbuttonService"):
                if canonical(name) in RESPONSES:
                    self._begin(name, response)
                    self._evidence.message = _printable(_text(response))
        return self._evidence

    def _take(self, path: list[tuple[str, Any]], item: Any) -> bool:  # noqa: ANN401 - xmltodict's types
        """Read a Client."""
        names = [_bare(name) for name, _ in path]
        if canonical(names[2]) in RESPONSES and canonical(names[3]) == "Client" and isinstance(item, dict):
            if not self._evidence.response:
                self._begin(names[2], {f"@{name}": value for name, value in (path[2][1] or {}).items()})
            for name in names:
                self._note_spelling(name)
            self._take_client(item)
        return True

    def _begin(self, name: str, response: Element | str | None) -> None:
        self._evidence.response = _bare(name)
        attributes = response.items() if isinstance(response, dict) else ()
        self._evidence.verdict = next(
            (str(text).strip().upper() for key, text in attributes if key.lower() == "@status"), ""
        )

    def _take_client(self, client: Element) -> None:
        code, records = "", []
        for name, child in _children(client):
            if canonical(name) == "ClientCode":
                code = _text(child).strip()
            self._note_spelling(name)
        for name, call in _children(client, "CallDetails"):
            self._note_spelling(name)
            if canonical(name) == "Call" and isinstance(call, dict):
                self._evidence.calls += 1
                record = self._record(code, call)
                if record is not None:
                    records.append(record)
        self._evidence.clients.append((code, records))

    def _record(self, code: str, call: Element) -> Record | None:
        texts: dict[str, str] = {}
        self._note(call, FIELDS, "", texts)
        identity = next((str(text).strip() for key, text in call.items() if key.lower() == "@id"), "")
        try:
            start, certainty = parse_wall(texts.get("StartTime", ""))
        except ValueError:
            self._counts["unreadable"]["StartTime"] += 1
            return None
        if not identity:
            self._counts["unreadable"]["ID"] += 1
            return None
        duration = SECONDS.fullmatch(texts.get("Duration", ""))
        end = start.timestamp() + int(duration[0]) if duration else None
        return Record(code, identity, texts.get("DID", ""), start, certainty, end)

    def _note(self, element: Element, known: Collection[str], prefix: str, texts: dict[str, str]) -> None:
        """Count the elements in a record by topic, and put the texts of its fields in `texts`."""
        for key in element:
            if key.startswith("@") and (prefix or key.lower() != "@id"):
                self._counts["unknown"][prefix + key] += 1
        for name, child in _children(element):
            self._note_spelling(name)
            place, text = prefix + canonical(name), _text(child)
            inner = canonical(name) == "Address" and not prefix
            if canonical(name) not in known and (text.strip() or not isinstance(child, dict)):
                self._counts["unknown"][place] += 1
            if isinstance(child, dict):
                self._note(child, ADDRESS_FIELDS if inner else (), f"{place}.", texts)
            elif text != text.strip():
                self._counts["padded"][place] += 1
            texts[place] = text.strip()
            if place in STATUS_FIELDS:
                self._counts["status"][place] += 1
            if place == "Address.ZIP":
                for kind, form in (("without zero", SHORT_ZIP), ("with zero", ZERO_ZIP)):
                    self._counts["zip"][kind] += form.fullmatch(texts[place]) is not None

    def _note_spelling(self, name: str) -> None:
        if canonical(name) != name:
            self._counts["misspelled"][name] += 1


def _bare(name: str) -> str:
    """A name without the prefix of its namespace."""
    return name.rpartition(":")[2]


def _children(element: Element | None, *path: str) -> Iterator[tuple[str, Any]]:
    """The names and contents of the elements in an element, or in all those at a path in it."""
    for key, children in (element or {}).items():
        for child in children if isinstance(children, list) and key != "#text" else ():
            if not path:
                yield _bare(key), child
            elif canonical(_bare(key)) == path[0] and isinstance(child, dict):
                yield from _children(child, *path[1:])


def _text(content: Element | str | None) -> str:
    text = content.get("#text") if isinstance(content, dict) else content
    return "".join(text) if isinstance(text, list) else text or ""


def _printable(text: str) -> str:
    return "".join(character for character in " ".join(text.split()) if character.isprintable())[:MAX_MESSAGE]
