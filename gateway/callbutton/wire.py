"""The XML of a request and of a reply, without I/O. The source is the protocol document of January 2009.

Rules, strict out and liberal in:
- A request lists `ClientCode`, each followed by the status flag if status is asked, then `StartDate`, `EndDate`.
- A reply is read as it streams in: expat builds a tree, and what is complete is taken off it.
- Names of elements are compared without case and namespace. Both spellings of the response element may carry both
  success and failure. Within a `Client` every `CallDetails` belongs to the `ClientCode` before it.
- Values are trimmed, empty is None (T6, T7). What the document does not know goes to `extra`.
- A call without an id or a readable StartTime is left out and counted (T3). An id that comes twice under one client
  code counts once: the last one (T2).
- Anything that is not well-formed, has a DOCTYPE, or is not the protocol is `UpstreamMalformed`, which says where.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from xml.etree.ElementTree import Element, ParseError, TreeBuilder, XMLParser

import msgspec
import xmltodict

from gateway.callbutton import central
from gateway.callbutton.charset import TextReader
from gateway.errors import UpstreamError, UpstreamFailed, UpstreamMalformed, UpstreamRejected, UpstreamUnauthorized
from gateway.model import Address, Call, Certainty, PhoneType, Result, SalesStatus, Status

CLIENT_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}|\*", re.ASCII)
RESPONSES = ("GetCallDetailsResponse", "GetCallDetailResponse")
REJECTED = re.compile(r"date range|start ?date|end ?date|(client|customer|cust) ?code", re.IGNORECASE)
DOCTYPE = re.compile(r"(?:\s|<\?.*?\?>|<!--.*?-->)*<!DOCTYPE", re.DOTALL)
ROOT = re.compile(r"(?:\s|<\?.*?\?>|<!--.*?-->)*<(?:[\w.-]+:)?(\w+)", re.DOTALL)
PROLOG_LIMIT = 65536  # characters before the root element

ADDRESS = {
    "FirstName": "first_name",
    "MiddleInitial": "middle_initial",
    "LastName": "last_name",
    "StreetAddress": "street",
    "SecondaryAddress": "secondary",
    "City": "city",
    "State": "state",
    "ZIP": "zip",
    "ZIP4": "zip4",
}
CALL = frozenset(
    "StartTime Campaign DID ANI OtherData InfoDigits Target Result Duration TalkTime IndexNumber VoiceDirectory "
    "Address ReviewedStatus DTMF SalesStatus Journal".split()
)
STATUS = frozenset(("ReviewedStatus", "SalesStatus", "Journal"))
ENVELOPE = ("Callbutton", "CallbuttonService", "Client", "ClientCode", "CallDetails", "Call", "Username")
CANONICAL = {name.lower(): name for name in (*CALL, *ADDRESS, *RESPONSES, *ENVELOPE, "Authentication", "ID", "status")}
PHONE_TYPES = {None: PhoneType.NORMAL, "p": PhoneType.PAYPHONE, "c": PhoneType.CELL}
RESULTS = {
    "connected": Result.CONNECTED,
    "busy": Result.BUSY,
    "no answer": Result.NO_ANSWER,
    "abandoned": Result.ABANDONED,
}
SALES = {None: SalesStatus.NONE, "called back": SalesStatus.CALLED_BACK, "made sale": SalesStatus.MADE_SALE}


def render_request(
    codes: Sequence[str], edges: central.Edges, *, status: bool = False, flag_element: str = "StatusFlag"
) -> bytes:
    """The body of a POST for the calls of `codes` between two wall times. Raises ValueError for a bad client code."""
    elements: list[tuple[str, str | None]] = []
    for code in codes:
        if CLIENT_CODE.fullmatch(code) is None:
            raise ValueError("a client code has characters that no client code has")
        elements.append(("ClientCode", code))
        if status:
            elements.append((flag_element, "true"))
    elements += [("StartDate", edges.start), ("EndDate", edges.end)]
    listed = "".join(xmltodict.unparse({name: value}, full_document=False) for name, value in elements)
    return (
        '<?xml version="1.0"?>\n<Callbutton version="B"><CallbuttonService><GetCallDetailsRequest>'
        f"{listed}</GetCallDetailsRequest></CallbuttonService></Callbutton>\n"
    ).encode("ascii")


class Reply(msgspec.Struct):
    """What one reply held. Calls are by client code as the upstream spells it, in the order of the reply."""

    calls: dict[str, list[Call]]
    unreadable: dict[str, int]
    unknown_elements: int
    status_ignored: bool
    repairs: Counter[str]


def canonical(name: str) -> str:
    """The protocol document's spelling of an element's name, whatever its case or namespace."""
    bare = name.rpartition("}")[2]
    return CANONICAL.get(bare.lower(), bare)


def trimmed(text: str | None) -> str | None:
    """The text without white space around it; None if nothing is left."""
    return (text.strip() or None) if text else None


def words(text: str | None) -> str | None:
    """The text in lower case with single spaces, to compare with the values of the document."""
    return " ".join(text.lower().split()) if text else None


class ReplyParser:
    """Reads one reply as it arrives: `feed` pieces of the body, then `close`."""

    def __init__(self, *, status: bool = False, charset: str | None = None) -> None:
        self._status = status
        self._text = TextReader(charset)
        builder = TreeBuilder()
        self._document = builder.start("document", {})  # a root of ours, so that the tree can be seen while it grows
        self._parser = XMLParser(target=builder)  # noqa: S314 - DOCTYPEs are refused before expat sees them
        self._prolog: str | None = ""
        self._names: dict[str, str] = {}
        self._calls: dict[str, dict[str, Call]] = {}
        self._unreadable: Counter[str] = Counter()
        self._memo: dict[str, str] = {}
        self._unknown = 0
        self._status_seen = False

    def feed(self, data: bytes) -> None:
        """Read a piece of the body. Raises UpstreamMalformed."""
        self._feed_text(self._text.feed(data))

    def _feed_text(self, text: str) -> None:
        if self._prolog is not None:
            self._prolog += text
            if not self._root_seen():
                return
            text, self._prolog = self._prolog.lstrip(), None
        if text:
            try:
                self._parser.feed(text)
            except ParseError as error:
                raise self._malformed(error) from error
            self._take(complete=False)

    def _malformed(self, error: ParseError) -> UpstreamMalformed:
        line, column = error.position
        return UpstreamMalformed(
            f"the Callbutton server's answer is not well-formed XML at line {line}, column {column + 1}: "
            f"{str(error).partition(':')[0]}"
        )

    def _root_seen(self) -> bool:
        prolog = self._prolog or ""
        if DOCTYPE.match(prolog):
            raise UpstreamMalformed("the Callbutton server's answer has a DOCTYPE before its root element")
        if root := ROOT.match(prolog):
            if root.end() == len(prolog):
                return False  # the name may go on
            if canonical(root[1]) != "Callbutton":
                kind = "an HTML page" if root[1].lower() == "html" else "something else"
                raise UpstreamMalformed(f"the Callbutton server's answer is {kind}: its root is not <Callbutton>")
            return True
        if len(prolog) > PROLOG_LIMIT or re.match(r"\s*[^<\s]", prolog):
            raise UpstreamMalformed("the Callbutton server's answer does not begin with an XML element, at line 1")
        return False

    def close(self) -> Reply:
        """The whole reply. Raises UpstreamMalformed, or the error that the upstream reports."""
        self._feed_text(self._text.feed(b"", last=True).rstrip("\0 \t\r\n"))
        if self._prolog is not None:
            raise UpstreamMalformed("the Callbutton server's answer is empty or ends before its root element")
        try:
            self._parser.close()
        except ParseError as error:
            raise self._malformed(error) from error
        response = self._response()
        if response is None:
            raise UpstreamMalformed("the Callbutton server's answer has no GetCallDetailsResponse")
        verdict = (self._attribute(response, "status") or "").strip().upper()
        if verdict != "OK":
            raise self._failure(verdict, response)
        self._take(complete=True)
        self._unknown += sum(self._name(child) not in ("Client", "ClientCode", "CallDetails") for child in response)
        calls = {code: list(found.values()) for code, found in self._calls.items()}
        ignored = self._status and not self._status_seen and any(calls.values())
        return Reply(
            calls={code: _settled(found, without_status=ignored) for code, found in calls.items()},
            unreadable=dict(self._unreadable),
            unknown_elements=self._unknown,
            status_ignored=ignored,
            repairs=self._text.repairs,
        )

    def _failure(self, verdict: str, response: Element) -> UpstreamError:
        if verdict == "UNAUTHORIZED":
            root = self._document[0]
            said = {self._name(child): trimmed(child.text) for child in root}
            return UpstreamUnauthorized(said.get("Username"), said.get("Authentication"))
        if verdict != "ERROR":
            return UpstreamMalformed("the Callbutton server's answer has a status that the protocol does not know")
        message = "".join(c for c in " ".join("".join(response.itertext()).split()) if c.isprintable())[:200]
        if REJECTED.search(message):
            return UpstreamRejected(message)
        return UpstreamFailed("the Callbutton server answered ERROR")

    def _name(self, element: Element) -> str:
        name = self._names.get(element.tag)
        if name is None:
            name = self._names[element.tag] = canonical(element.tag)
        return name

    def _attribute(self, element: Element, name: str) -> str | None:
        return next((value for key, value in element.items() if canonical(key) == name), None)

    def _response(self) -> Element | None:
        for root in self._document:
            for service in root:
                if self._name(service) == "CallbuttonService":
                    for response in service:
                        if self._name(response) in RESPONSES:
                            return response
        return None

    def _take(self, *, complete: bool) -> None:
        """Take the calls that are whole off the tree; the last element of each level may still grow."""
        response = self._response()
        if response is None or (self._attribute(response, "status") or "").strip().upper() != "OK":
            return
        for client in list(response):
            growing = not complete and client is response[-1]
            if self._name(client) == "Client":
                self._take_client(client, growing=growing)
                if not growing:
                    response.remove(client)

    def _take_client(self, client: Element, *, growing: bool) -> None:
        code: str | None = None
        for child in client:
            name = self._name(child)
            if name == "ClientCode":
                code = trimmed(child.text)
                if code is not None and not (growing and child is client[-1]):
                    self._calls.setdefault(code, {})
            elif name == "CallDetails":
                if code is None:
                    raise UpstreamMalformed("the Callbutton server's answer has CallDetails before a ClientCode")
                count = len(child) - (growing and child is client[-1])
                for element in child[: max(count, 0)]:
                    if self._name(element) == "Call":
                        self._take_call(element, code)
                    else:
                        self._unknown += 1
                del child[: max(count, 0)]
            elif not growing:
                self._unknown += 1

    def _take_call(self, element: Element, code: str) -> None:
        names, memo = self._names, self._memo
        try:
            values = {names[child.tag]: child.text for child in element}
        except KeyError:
            values = {self._name(child): child.text for child in element}
        identity = trimmed(element.get("ID") or self._attribute(element, "ID"))
        found = self._calls.setdefault(code, {})
        try:
            start, certainty = central.read_wall(values.get("StartTime") or "")
        except ValueError:
            identity = None
        if identity is None:
            self._unreadable[code] += 1
            return
        for name, text in values.items():
            if text is not None:
                text = text.strip() or None
                values[name] = text if text is None else memo.setdefault(text, text) if len(text) < 16 else text
        if len(memo) > 50_000:
            memo.clear()
        extra: dict[str, str] = {}
        if len(values) != len(element) or not CALL.issuperset(values) or len(element.attrib) > 1:
            self._keep_unknown(element, extra)
        get = values.get
        digits, result = get("InfoDigits"), get("Result")
        phone_type = PHONE_TYPES.get(digits.lower() if digits else None, PhoneType.OTHER)
        if phone_type is PhoneType.OTHER and digits:
            extra["InfoDigits"] = digits
        outcome = RESULTS.get(words(result) or "", Result.OTHER)
        if outcome is Result.OTHER and result:
            extra["Result"] = result
        address = element.find("Address") if "Address" in values else None
        if address is None and "Address" in values:
            address = next(child for child in element if self._name(child) == "Address")
        found.pop(identity, None)
        found[identity] = Call(
            id=identity,
            client_code=code,
            start_time=start,
            start_time_certainty=certainty,
            campaign=get("Campaign"),
            did=get("DID"),
            ani=get("ANI"),
            other_data=get("OtherData"),
            phone_type=phone_type,
            target=get("Target"),
            result=outcome,
            duration_seconds=_seconds("Duration", get("Duration"), extra),
            talk_time_seconds=_seconds("TalkTime", get("TalkTime"), extra),
            index_number=get("IndexNumber"),
            dtmf=get("DTMF"),
            recording_url=get("VoiceDirectory"),
            address=self._address(address, extra) if address is not None else None,
            status=self._status_of(values, extra) if self._status else None,
            extra=extra,
        )

    def _status_of(self, values: dict[str, str | None], extra: dict[str, str]) -> Status:
        self._status_seen = self._status_seen or not STATUS.isdisjoint(values)
        reviewed, sales = values.get("ReviewedStatus"), values.get("SalesStatus")
        sold = SALES.get(words(sales), SalesStatus.OTHER)
        if sold is SalesStatus.OTHER and sales:
            extra["SalesStatus"] = sales
        if reviewed and words(reviewed) not in ("reviewed", "unreviewed"):
            extra["ReviewedStatus"] = reviewed
        return Status(reviewed=words(reviewed) == "reviewed", sales=sold, journal=values.get("Journal"))

    def _address(self, element: Element, extra: dict[str, str]) -> Address | None:
        values: dict[str, str | None] = dict.fromkeys(ADDRESS.values())
        for child in element:
            if (field := ADDRESS.get(self._name(child))) is None:
                self._keep("Address." + self._name(child), child, extra)
            else:
                values[field] = trimmed(child.text)
        if not any(values.values()):
            return None
        return Address(**values)

    def _keep_unknown(self, element: Element, extra: dict[str, str]) -> None:
        """Put into `extra` what the document does not know, and every value of an element that comes twice (T6)."""
        counts = Counter(self._name(child) for child in element)
        for child in element:
            name = self._name(child)
            if name not in CALL:
                self._keep(name, child, extra)
            elif counts[name] > 1 and name not in STATUS and name != "Address":
                _join(extra, name, trimmed(child.text))
        for name, value in element.items():
            if canonical(name) != "ID":
                self._unknown += 1
                _join(extra, f"@{name}", trimmed(value))

    def _keep(self, name: str, element: Element, extra: dict[str, str]) -> None:
        self._unknown += 1
        _join(extra, name, trimmed(element.text))
        for key, value in element.items():
            _join(extra, f"{name}.@{key}", trimmed(value))
        for child in element:
            self._keep(f"{name}.{child.tag.rpartition('}')[2]}", child, extra)


def _join(extra: dict[str, str], name: str, text: str | None) -> None:
    if text is not None:
        extra[name] = f"{extra[name]}\n{text}" if name in extra else text


def _seconds(name: str, text: str | None, extra: dict[str, str]) -> int | None:
    if text is None:
        return None
    if text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    extra[name] = text
    return None


def _settled(calls: list[Call], *, without_status: bool) -> list[Call]:
    """The calls of one client code with their folds decided by the order of the reply (T4)."""
    if any(_in_doubt(call.start_time_certainty) and central.in_fold(call.start_time) for call in calls):
        for index, instant in central.infer_folds(_times(calls)).items():
            calls[index] = msgspec.structs.replace(
                calls[index], start_time=instant, start_time_certainty=Certainty.INFERRED
            )
    if without_status:
        return [msgspec.structs.replace(call, status=None) for call in calls]
    return calls


def _in_doubt(certainty: Certainty) -> bool:
    return certainty is not Certainty.EXACT


def _times(calls: Sequence[Call]) -> list[datetime]:
    return [call.start_time for call in calls]


def parse_reply(body: bytes, *, status: bool = False, charset: str | None = None) -> Reply:
    """A whole reply at once. Raises an UpstreamError."""
    parser = ReplyParser(status=status, charset=charset)
    for piece in _pieces(body):
        parser.feed(piece)
    return parser.close()


def _pieces(body: bytes, size: int = 65536) -> Iterator[bytes]:
    return (body[start : start + size] for start in range(0, len(body), size))
