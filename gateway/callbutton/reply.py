"""A reply of the Callbutton server: XML, read as it streams in, to calls. The source is the protocol document of 2009.

Rules, liberal as to form and strict as to sense:
- Expat reads each slice, and ElementTree's builder (in C) appends to a tree. Complete elements are read and removed
  after each slice, so the tree holds one slice and one record at most. Handlers of `xml.parsers.expat` in Python take
  a fifth more time, because each element costs two calls of Python functions.
- Elements at places that the document does not describe are passed over, and counted within a response.
- Names are compared without case and namespace. Both spellings of the response element may carry success and failure.
- Within a `Client` every `CallDetails` belongs to the `ClientCode` before it. Several of both are read.
- A record without an id or a readable StartTime is an `UnreadableCall`, and counted (T3). An id that comes twice under
  one client code counts once: the last one (T2).
- An ERROR that only says that no calls were found is an empty reply, if one client code was requested.
- A reply with calls of which none can be read, because their StartTimes have another form, is `UpstreamMalformed`.
- Anything that is not well-formed, has a DOCTYPE, is too deep or too long, or is not the protocol is
  `UpstreamMalformed`, which says where.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import NoReturn
from xml.etree.ElementTree import Element, ParseError, TreeBuilder, XMLParser

from msgspec import Struct
from msgspec.structs import replace

from gateway.callbutton import central_time
from gateway.callbutton.record import EARLIEST, LATEST, NO_ID, NO_STATUS, RecordReader, attribute, canonical
from gateway.callbutton.text import TextDecoder
from gateway.errors import UpstreamError, UpstreamFailed, UpstreamMalformed, UpstreamRejected, UpstreamUnauthorized
from gateway.model import Call, StartTimeCertainty, UnreadableCall

SLICE_SIZE = 8192  # characters; small enough that no garbage collection runs while the elements of a slice exist
MAX_DEPTH = 40  # levels; the protocol has nine
MAX_ELEMENTS = 50_000  # elements in the tree; a slice has at most 2,048
# Characters of one record; a journal of 300 pages. Expat before 2.6 reads an incomplete token again with every slice,
# so a long one takes quadratic time.
MAX_RECORD_SIZE = 1024 * 1024
MAX_PROLOG_SIZE = 65536  # characters before the root element
REJECTED = re.compile(r"date range|start ?date|end ?date|(client|customer|cust) ?code", re.IGNORECASE)
# An ERROR that is no error: "No calls found for this period.", "The query returned 0 rows", "Call details not found".
NOUN = (
    r"(?:(?:(?:new|such|more|matching|phone|inbound|incoming|completed|call|data) )*(?:calls?|cdrs?|details?|rows?"
    r"|(?:detail )?records?|results?(?: sets?)?|data|information|history|activity|match(?:es)?|entr(?:y|ies)))"
)
FOUND = (
    r"(?:(?:(?:was|were|is|are|(?:has|have) been|could be|to) )?(?:found|available|return(?:ed)?|match\w*|meet"
    r"|exists?|made|report(?:ed)?|display(?:ed)?|list(?:ed)?|recorded|logged|selected|(?<=calls )received"
    r"|on (?:file|record))\b)"
)
NO_CALLS = re.compile(
    rf"(?:sorry,? )?(?:(?:there (?:are|were|is|was|have been)|(?:(?:the|your) )?(?:query|search|request|we)? ?"
    rf"(?:found|returned)) )?(?:(?:no|0|zero) {NOUN}|an? empty {NOUN}|empty {NOUN}|nothing|none)(?: {FOUND})?"
    rf"(?: (?:for|in|on|at|between|within|during|from|with|since|your|the|that)\b(?:[^:;]|(?<=\d):(?=\d))*)?"
    rf"(?:: ?[\w.-]+)?[ .!]*"
    rf"|{NOUN} (?:(?:was|were|could be) )?not found[ .!]*",
    re.IGNORECASE,
)
TROUBLE = re.compile(
    r"\b(?:err|fail|time[ds]?.?out|try|invalid|not valid|unavail|unknown|denied|unauth|connect|database|server|table)",
    re.IGNORECASE,
)
RESPONSES = ("GetCallDetailsResponse", "GetCallDetailResponse")
MISC = r"(?>[ \t\r\n]++|<\?.*?\?>|<!--.*?-->)*+"  # atomic: no character is searched twice
DOCTYPE = re.compile(MISC + "<!DOCTYPE", re.DOTALL)
ROOT = re.compile(MISC + r"<(?:[\w.-]+:)?([\w.-]+)", re.DOTALL)


class Reply(Struct):
    """The content of one reply. Calls are by client code as the upstream spells it, in the order of the reply."""

    calls: dict[str, list[Call]]
    unreadable: dict[str, list[UnreadableCall]]
    unknown_elements: int
    status_ignored: bool
    repairs: Counter[str]


class Unreadable(Struct):
    """An unreadable record, and the calls before and after it in the reply."""

    record: UnreadableCall
    before: Call | None
    after: Call | None = None


class ReplyParser:
    """Reads one reply as it arrives: `feed` pieces of the body, then `close`."""

    def __init__(self, *, status: bool = False, charset: str | None = None, single: bool = False) -> None:
        self._status = status
        self._single = single  # whether one client code was requested
        self._text = TextDecoder(charset)
        self._prolog: str | None = ""  # None once the root has begun
        builder = TreeBuilder()
        self._document = builder.start("document", {})  # a wrapper, because the builder returns no root before the end
        self._parser = XMLParser(target=builder)  # noqa: S314 - DOCTYPEs are refused before expat sees them
        self._response: Element | None = None  # once it has begun, if its status is OK
        self._line = 1
        self._size = 0  # characters since an element of the response was complete
        self._code: str | None = None  # the code that applies in the Client that is growing
        self._records = RecordReader(status=status)
        self._calls: dict[str, dict[str, Call]] = {}
        self._uncertain: set[str] = set()  # client codes with a call whose time may be in a fold
        self._unreadable: dict[str, list[Unreadable]] = {}
        self._equal = Counter[str]()  # unreadable records without id, in the Client that is growing
        self._unknown = 0

    def feed(self, data: bytes) -> None:
        """Read a piece of the body. Raises UpstreamMalformed."""
        text = self._text.decode(data)
        if self._prolog is not None:
            self._prolog += text
            if not self._root_begins(self._prolog):
                return
            text, self._prolog = self._prolog, None
        for at in range(0, len(text), SLICE_SIZE):
            self._parse(text[at : at + SLICE_SIZE])
            self._take(complete=False)
            self._check_bounds()

    def close(self) -> Reply:
        """The whole reply. Raises UpstreamMalformed, or the error that the upstream reports."""
        text = self._text.decode(b"", last=True)
        if self._prolog is not None:
            text = self._prolog + text
            if not self._root_begins(text):
                raise UpstreamMalformed("the Callbutton server's answer is empty or ends before its root element")
        self._parse(text, last=True)
        responses = self._responses()
        if len(responses) != 1:
            count = "several" if responses else "no"
            raise UpstreamMalformed(f"the Callbutton server's answer has {count} GetCallDetailsResponse")
        verdict = attribute(responses[0], "status").upper()
        if verdict == "OK":
            self._take(complete=True)
        elif not (verdict == "ERROR" and self._single and _says_no_calls(_message(responses[0]))):
            raise self._failure(verdict, responses[0])
        calls = {code: self._settled(code) for code in self._calls}
        if (form := self._records.other_form) and not any(calls.values()):
            raise UpstreamMalformed(
                f"no StartTime of the Callbutton server's answer has the form MM/DD/YYYY HH:MM:SS: it sends {form}",
                start_time_form=form,
            )
        return Reply(
            calls=calls,
            unreadable={code: _placed(found, calls[code]) for code, found in self._unreadable.items()},
            unknown_elements=self._unknown + self._records.unknown,
            status_ignored=self._status and not self._records.status_seen and any(calls.values()),
            repairs=self._text.repairs,
        )

    def _root_begins(self, prolog: str) -> bool:
        if DOCTYPE.match(prolog):
            raise UpstreamMalformed("the Callbutton server's answer has a DOCTYPE before its root element")
        if root := ROOT.match(prolog):
            if root.end() == len(prolog):
                return False  # the name may go on
            if canonical(root[1]) != "Callbutton":
                kind = "an HTML page" if root[1].lower() == "html" else "something else"
                raise UpstreamMalformed(f"the Callbutton server's answer is {kind}: its root is not <Callbutton>")
            return True
        if len(prolog) > MAX_PROLOG_SIZE or re.match(r"\s*[^<\s]", prolog):
            raise UpstreamMalformed("the Callbutton server's answer does not begin with an XML element, at line 1")
        return False

    def _parse(self, text: str, *, last: bool = False) -> None:
        try:
            self._parser.feed(text)
            if last:
                self._parser.close()
            elif hasattr(self._parser, "flush"):  # expat 2.6 and later may delay the text that it was given
                self._parser.flush()
        except ParseError as error:
            line, column = error.position
            raise UpstreamMalformed(
                f"the Callbutton server's answer is not well-formed XML at line {line + self._text.lines_removed}, "
                f"column {column + 1}: {str(error).partition(':')[0]}"
            ) from error
        self._line += text.count("\n")
        self._size += len(text)

    def _refuse(self, what: str) -> NoReturn:
        line = self._line + self._text.lines_removed
        raise UpstreamMalformed(f"the Callbutton server's answer {what}, before line {line}")

    def _check_bounds(self) -> None:
        """Refuse a tree that would fill the memory. Complete elements have been removed before."""
        depth, elements, level = 0, 0, list(self._document)
        while level:
            depth, elements = depth + 1, elements + len(level)
            if depth > MAX_DEPTH:
                self._refuse("is nested too deeply")
            if elements > MAX_ELEMENTS:
                self._refuse("has too many elements in one record")
            level = [child for element in level for child in element]
        if self._size > MAX_RECORD_SIZE:
            self._refuse("has a record that is too long")

    def _responses(self) -> list[Element]:
        return [
            response
            for root in self._document
            for service in root
            if canonical(service.tag) == "CallbuttonService"
            for response in service
            if canonical(response.tag) in RESPONSES
        ]

    def _take(self, *, complete: bool) -> None:
        """Read complete elements and remove them. Unless all are, the last element of each level may still grow."""
        if self._response is None:
            responses = self._responses()
            if len(responses) != 1 or attribute(responses[0], "status").upper() != "OK":
                return
            self._response = responses[0]
        clients = list(self._response)
        for client in clients:
            growing = not complete and client is clients[-1]
            name = canonical(client.tag)
            if name == "Client":
                self._take_client(client, growing=growing)
            elif name in ("CallDetails", "Call"):
                self._refuse(f"has {name} outside of a Client")
            elif not growing:
                self._unknown += 1
        self._remove(self._response, len(clients) - (not complete))

    def _take_client(self, client: Element, *, growing: bool) -> None:
        """Read the complete elements of a Client. The code that applies to the rest of it is kept until it ends."""
        code = kept = self._code
        children = list(client)
        for child in children:
            last = growing and child is children[-1]
            name = canonical(child.tag)
            if name == "CallDetails":
                if code is None:
                    self._refuse("has CallDetails before a ClientCode")
                count = len(child) - last
                self._take_calls(child[:count], code)
                if last:
                    self._remove(child, count)
            elif name == "Call":
                self._refuse("has a Call outside of CallDetails")
            elif last:
                break
            elif name == "ClientCode":
                code = (child.text or "").strip() or None
                if code is not None:
                    self._calls.setdefault(code, {})
            else:
                self._unknown += 1
            if not last:
                kept = code
        self._code = None
        if growing:
            self._remove(client, len(children) - 1)
            self._code = kept
        else:
            self._equal.clear()

    def _remove(self, element: Element, count: int) -> None:
        if count > 0:
            self._size = 0
            del element[:count]

    def _take_calls(self, elements: list[Element], code: str) -> None:
        read, found = self._records.read, self._calls[code]
        unreadable = self._unreadable.get(code, [])
        for element in elements:
            if canonical(element.tag) != "Call":
                self._unknown += 1
                continue
            try:
                call = read(element, code)
            except ValueError as error:
                self._refuse(str(error))
            if isinstance(call, UnreadableCall):
                if call.id.startswith(NO_ID):  # equal ones differ, unless it is the Client that is repeated
                    self._equal[call.id] += 1
                    call = replace(call, id=f"{call.id} {self._equal[call.id]}")
                found.pop(call.id, None)  # the last one of an id counts, readable or not
                unreadable = self._unreadable.setdefault(code, unreadable)
                unreadable.append(Unreadable(call, next(reversed(found.values()), None)))
                continue
            if unreadable and unreadable[-1].after is None:
                for one in unreadable:
                    one.after = one.after or call
            if call.start_time_certainty is not StartTimeCertainty.EXACT:
                self._uncertain.add(code)
            if call.id in found:  # the last one of an id counts, at its own place in the order
                del found[call.id]
            found[call.id] = call

    def _settled(self, code: str) -> list[Call]:
        """The calls of one client code with their folds decided by the order of the reply (T4)."""
        calls = list(self._calls[code].values())
        if code in self._uncertain:
            for index, instant in central_time.infer_folds([call.start_time for call in calls]).items():
                calls[index] = replace(
                    calls[index], start_time=instant, start_time_certainty=StartTimeCertainty.INFERRED
                )
        if self._records.status_seen:  # calls before the first status have none yet
            calls = [call if call.status else replace(call, status=NO_STATUS) for call in calls]
        return calls

    def _failure(self, verdict: str, response: Element) -> UpstreamError:
        if verdict == "UNAUTHORIZED":
            said = {canonical(child.tag): (child.text or "").strip() or None for child in self._document[0]}
            return UpstreamUnauthorized(said.get("Username"), said.get("Authentication"))
        if verdict != "ERROR":
            return UpstreamMalformed("the Callbutton server's answer has a status that the protocol does not know")
        message = _message(response)
        if REJECTED.search(message):
            return UpstreamRejected(message)
        return UpstreamFailed("the Callbutton server answered ERROR", reported=True)


def _message(response: Element) -> str:
    return "".join(c for c in " ".join("".join(response.itertext()).split()) if c.isprintable())[:200]


def _says_no_calls(message: str) -> bool:
    return NO_CALLS.fullmatch(message) is not None and TROUBLE.search(message) is None


def _placed(found: list[Unreadable], calls: list[Call]) -> list[UnreadableCall]:
    """Place the unreadable records of one client code between the calls beside them."""
    descending = bool(calls) and calls[-1].start_time < calls[0].start_time
    readable = {call.id for call in calls}  # these came later
    placed: dict[str, UnreadableCall] = {}
    for one in found:
        record, beside = one.record, (one.before, one.after)
        if record.start_time == EARLIEST:
            first, last = reversed(beside) if descending else beside
            starts = first.start_time if first else EARLIEST, last.start_time if last else LATEST
            record = replace(record, start_time=min(starts), latest=max(starts))
        placed[record.id] = record
    return [record for id_, record in placed.items() if id_ not in readable]
