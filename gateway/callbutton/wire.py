"""The XML of a request and of a reply, without I/O. The source is the protocol document of January 2009.

Rules, strict out and liberal in:
- A request lists `ClientCode`, each followed by the status flag if status is asked, then `StartDate`, `EndDate`.
- A reply is read as it streams in: `tree` grows, and what is complete is taken off it.
- Both spellings of the response element may carry both success and failure. Within a `Client` every `CallDetails`
  belongs to the `ClientCode` before it. One record is read by `record`.
- A call without an id or a readable StartTime is left out and counted (T3). An id that comes twice under one client
  code counts once: the last one (T2).
- Anything that is not well-formed, has a DOCTYPE, or is not the protocol is `UpstreamMalformed`, which says where.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from xml.etree.ElementTree import Element

import msgspec
import xmltodict

from gateway.callbutton import central, template
from gateway.callbutton.charset import TextReader
from gateway.callbutton.record import RecordReader, attribute, canonical, trimmed
from gateway.callbutton.tree import TreeReader
from gateway.errors import UpstreamError, UpstreamFailed, UpstreamMalformed, UpstreamRejected, UpstreamUnauthorized
from gateway.model import Call, Certainty

CLIENT_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}|\*", re.ASCII)
RESPONSES = ("GetCallDetailsResponse", "GetCallDetailResponse")
REJECTED = re.compile(r"date range|start ?date|end ?date|(client|customer|cust) ?code", re.IGNORECASE)
MISC = r"(?>[ \t\n]++|<\?.*?\?>|<!--.*?-->)*+"  # atomic: nothing is searched twice
DOCTYPE = re.compile(MISC + "<!DOCTYPE", re.DOTALL)
ROOT = re.compile(MISC + r"<(?:[\w.-]+:)?([\w.-]+)", re.DOTALL)
PROLOG_LIMIT = 65536  # characters before the root element
MOST_HELD = 65536  # characters of a record
MOST_MISSES = 100  # places in a row where the template does not match two records: it is given up
MOST_AROUND = 1000  # elements in the tree: expat alone is quicker


def render_request(
    codes: Sequence[str], edges: central.Edges | None, *, status: bool = False, flag_element: str = "StatusFlag"
) -> bytes:
    """The body of a POST for the calls of `codes` between two wall times, or all. Raises ValueError for a bad one."""
    elements: list[tuple[str, str | None]] = []
    for code in codes:
        if CLIENT_CODE.fullmatch(code) is None:
            raise ValueError("a client code has characters that no client code has")
        elements.append(("ClientCode", code))
        if status:
            elements.append((flag_element, "true"))
    elements += [("StartDate", edges and edges.start), ("EndDate", edges and edges.end)]
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


class ReplyParser:
    """Reads one reply as it arrives: `feed` pieces of the body, then `close`.

    Records that `template` matches where a record may be never reach expat; expat has all else, and the last word.
    """

    def __init__(self, *, status: bool = False, charset: str | None = None) -> None:
        self._status = status
        self._text = TextReader(charset)
        self._tree = TreeReader()
        self._prolog: str | None = ""
        self._held = ""  # where a record may be: the beginning of what the next piece may end
        self._code: str | None = None  # whose records come next, if that is where the text is
        self._client_code: str | None = None  # that holds in the Client that is growing
        self._misses = 0
        self._records = RecordReader(status=status)
        self._calls: dict[str, dict[str, Call]] = {}
        self._unreadable: Counter[str] = Counter()
        self._unknown = 0

    def feed(self, data: bytes) -> None:
        """Read a piece of the body. Raises UpstreamMalformed."""
        text = self._text.feed(data)
        if self._prolog is not None:
            self._prolog += text
            if not self._root_seen():
                return
            text = self._tree.skip_space(self._prolog)
            self._prolog = None
        self._read(self._held + text)

    def _read(self, text: str) -> None:
        at = 0
        while self._misses < MOST_MISSES and self._tree.elements < MOST_AROUND and not self._tree.commented:
            if self._code is not None:
                at = self._match(text, at, self._code)
            end = template.next_place(text, at)
            if end < 0:
                break
            self._tree.feed(text[at:end])
            at = end
            self._misses += 1
            self._take_before_record()
        else:
            self._code = None
        self._held = text[at:]
        if self._code is None or len(self._held) > MOST_HELD:
            self._tree.feed(self._held)
            self._held, self._code = "", None
            self._take(complete=False)

    def _match(self, text: str, at: int, code: str) -> int:
        """Take the records that the template matches; return where it no longer does."""
        start, count = at, 0
        make, found = self._records.make, self._calls[code]
        while (matched := template.match(text, at)) is not None:
            values, at = matched
            self._put(found, code, make(values, code, {}))
            count += 1
        if at > start:
            self._tree.skip(text[start:at])
            if count > 1:
                self._misses = 0
        return at

    def _take_before_record(self) -> None:
        """Take what is whole at a place between two tags, and find out whether records come next."""
        self._code = None
        if not self._tree.in_cdata and not self._tree.commented:
            with self._tree.marked() as parent:
                details, code = self._take(complete=False)
                self._code = code if details is parent else None

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
        text = self._held + self._text.feed(b"", last=True)
        if self._prolog is not None:
            self._prolog += text
            if not self._root_seen():
                raise UpstreamMalformed("the Callbutton server's answer is empty or ends before its root element")
            text = self._tree.skip_space(self._prolog)
        self._tree.feed(text.rstrip(" \t\n"))
        self._tree.close()
        if len(responses := self._responses()) != 1:
            count = "several" if responses else "no"
            raise UpstreamMalformed(f"the Callbutton server's answer has {count} GetCallDetailsResponse")
        (response,) = responses
        verdict = (attribute(response, "status") or "").strip().upper()
        if verdict != "OK":
            raise self._failure(verdict, response)
        self._take(complete=True)
        calls = {code: list(found.values()) for code, found in self._calls.items()}
        ignored = self._status and not self._records.status_seen and any(calls.values())
        return Reply(
            calls={code: _settled(found, without_status=ignored) for code, found in calls.items()},
            unreadable=dict(self._unreadable),
            unknown_elements=self._unknown + self._records.unknown,
            status_ignored=ignored,
            repairs=self._text.repairs,
        )

    def _failure(self, verdict: str, response: Element) -> UpstreamError:
        if verdict == "UNAUTHORIZED":
            root = self._tree.document[0]
            said = {canonical(child.tag): trimmed(child.text) for child in root}
            return UpstreamUnauthorized(said.get("Username"), said.get("Authentication"))
        if verdict != "ERROR":
            return UpstreamMalformed("the Callbutton server's answer has a status that the protocol does not know")
        message = "".join(c for c in " ".join("".join(response.itertext()).split()) if c.isprintable())[:200]
        if REJECTED.search(message):
            return UpstreamRejected(message)
        return UpstreamFailed("the Callbutton server answered ERROR", reported=True)

    def _responses(self) -> list[Element]:
        return [
            response
            for root in self._tree.document
            for service in root
            if canonical(service.tag) == "CallbuttonService"
            for response in service
            if canonical(response.tag) in RESPONSES
        ]

    def _take(self, *, complete: bool) -> tuple[Element | None, str | None]:
        """Take what is whole off the tree; the last element of each level may still grow.

        Returns the CallDetails that may still grow, and its client code.
        """
        details, code = None, None
        responses = self._responses()
        if len(responses) != 1 or (attribute(responses[0], "status") or "").strip().upper() != "OK":
            return details, code
        (response,) = responses
        clients = list(response)
        for client in clients:
            growing = not complete and client is clients[-1]
            name = canonical(client.tag)
            if name == "Client":
                details, code = self._take_client(client, growing=growing)
            elif name in ("CallDetails", "Call"):
                raise UpstreamMalformed(f"the Callbutton server's answer has {name} outside of a Client")
            elif not growing:
                self._unknown += 1
        del response[: len(clients) - (not complete)]
        return details, code

    def _take_client(self, client: Element, *, growing: bool) -> tuple[Element | None, str | None]:
        """Take what is whole of a Client; the code that holds for the rest of it is kept until it ends."""
        details = None
        code = kept = self._client_code
        children = list(client)
        for child in children:
            last = growing and child is children[-1]
            name = canonical(child.tag)
            if name == "ClientCode":
                code = trimmed(child.text)
                if code is not None and not last:
                    self._calls.setdefault(code, {})
            elif name == "CallDetails":
                if code is None:
                    raise UpstreamMalformed("the Callbutton server's answer has CallDetails before a ClientCode")
                count = max(len(child) - last, 0)
                self._take_calls(child[:count], code)
                del child[:count]
                details = child
            elif name == "Call":
                raise UpstreamMalformed("the Callbutton server's answer has a Call outside of CallDetails")
            elif not last:
                self._unknown += 1
            if not last:
                kept = code
        del client[: len(children) - growing]
        self._client_code = kept if growing else None
        return details, code

    def _take_calls(self, elements: list[Element], code: str) -> None:
        read, found = self._records.read, self._calls.setdefault(code, {})
        for element in elements:
            if canonical(element.tag) == "Call":
                self._put(found, code, read(element, code))
            else:
                self._unknown += 1

    def _put(self, found: dict[str, Call], code: str, call: Call | None) -> None:
        if call is None:
            self._unreadable[code] += 1
            return
        if call.id in found:
            del found[call.id]
        found[call.id] = call


def _settled(calls: list[Call], *, without_status: bool) -> list[Call]:
    """The calls of one client code with their folds decided by the order of the reply (T4)."""
    exact = Certainty.EXACT
    if any(call.start_time_certainty is not exact and central.in_fold(call.start_time) for call in calls):
        for index, instant in central.infer_folds([call.start_time for call in calls]).items():
            calls[index] = msgspec.structs.replace(
                calls[index], start_time=instant, start_time_certainty=Certainty.INFERRED
            )
    return [msgspec.structs.replace(call, status=None) for call in calls] if without_status else calls


def parse_reply(body: bytes, *, status: bool = False, charset: str | None = None) -> Reply:
    """A whole reply at once. Raises an UpstreamError."""
    parser = ReplyParser(status=status, charset=charset)
    for piece in _pieces(body):
        parser.feed(piece)
    return parser.close()


def _pieces(body: bytes, size: int = 65536) -> Iterator[bytes]:
    return (body[start : start + size] for start in range(0, len(body), size))
