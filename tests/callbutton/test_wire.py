"""Requests and replies on the wire."""

import random
from typing import Any
from unittest import mock
from xml.sax.saxutils import escape

import pytest
import xmltodict
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.callbutton import record, template, wire
from gateway.callbutton.central import Edges
from gateway.callbutton.charset import TextReader
from gateway.errors import UpstreamFailed, UpstreamMalformed, UpstreamRejected, UpstreamUnauthorized
from gateway.model import Call, Certainty, PhoneType, Result, SalesStatus, Status
from tests.support.paths import DATA

SAMPLES = DATA / "samples"
REPLY = (SAMPLES / "reply.xml").read_bytes()
START = "<StartTime>06/01/2026 07:30:00</StartTime>"


def reply(calls: str, status: str = "OK", code: str = "a") -> bytes:
    client = f"<Client><ClientCode>{code}</ClientCode><CallDetails>{calls}</CallDetails></Client>"
    return envelope(f'<GetCallDetailsResponse status="{status}">{client}</GetCallDetailsResponse>')


def envelope(response: str) -> bytes:
    return (
        '<?xml version="1.0"?><Callbutton version="B"><Username>u</Username><Authentication>192.0.2.1'
        f"</Authentication><CallbuttonService>{response}</CallbuttonService></Callbutton>"
    ).encode()


def only(body: bytes, *, status: bool = False) -> Call:
    calls = wire.parse_reply(body, status=status).calls["a"]
    assert len(calls) == 1
    return calls[0]


def cut(body: bytes, size: int) -> list[bytes]:
    return [body[at : at + size] for at in range(0, len(body), size)]


def fed(pieces: list[bytes], *, status: bool = False) -> wire.Reply:
    parser = wire.ReplyParser(status=status)
    for piece in pieces:
        parser.feed(piece)
    return parser.close()


def in_pieces(body: bytes, size: int, *, status: bool = False) -> wire.Reply:
    return fed(cut(body, size), status=status)


def test_the_sample_reply_is_read_element_by_element():
    found = wire.parse_reply(REPLY, status=True)
    assert found.calls["8005550101"] == []
    (call,) = found.calls["8005550100"]
    assert (call.id, call.client_code, call.start_time.isoformat()) == (
        "188231",
        "8005550100",
        "2026-06-01T12:30:00+00:00",
    )
    assert call.start_time_certainty is Certainty.EXACT
    assert (call.campaign, call.did, call.ani, call.other_data) == ("4471", "8005550100", "3125550100", "web")
    assert (call.phone_type, call.target, call.result) == (PhoneType.CELL, "3125550199", Result.NO_ANSWER)
    assert (call.duration_seconds, call.talk_time_seconds, call.index_number, call.dtmf) == (63, 0, "0042", "1#")
    assert call.recording_url is not None
    assert call.address is not None
    assert (call.address.first_name, call.address.last_name, call.address.secondary) == ("Zoë", "O'Neill", None)
    assert (call.address.zip, call.address.zip4) == ("02134", "0123")
    assert call.status == Status(reviewed=True, sales=SalesStatus.MADE_SALE, journal="Called back.\nWants <two>.")
    assert call.extra == {}


def test_the_reply_as_printed_is_malformed():
    with pytest.raises(UpstreamMalformed, match="line"):
        wire.parse_reply((SAMPLES / "reply-as-printed.xml").read_bytes())


def test_a_reply_cut_anywhere_is_malformed():
    end = REPLY.rindex(b">") + 1
    for length in range(end):
        with pytest.raises(UpstreamMalformed):
            wire.parse_reply(REPLY[:length])


BROKEN = {
    "an HTML page": b"<!DOCTYPE html><html></html>",
    "HTML without a DOCTYPE": b"<html><body>Error</body></html>",
    "another root": b"<a/>",
    "text": b"Internal error",
    "nothing": b"",
    "an external DOCTYPE": b'<?xml version="1.0"?><!DOCTYPE Callbutton SYSTEM "x.dtd"><Callbutton/>',
    "an entity bomb": b'<!DOCTYPE Callbutton [<!ENTITY a "aa">]><Callbutton>&a;</Callbutton>',
    "mismatched tags": reply(f'<Call ID="1">{START}</call>'),
    "junk after the root": REPLY + b"<more/>",
    "a root that begins alike": b"<Callbutton-x/>",
    "a space that XML does not know": "\u00a0".encode() + REPLY,
    "no response": b"<Callbutton/>",
    "an unknown status": reply("", status="PARTIAL"),
    "no status": envelope("<GetCallDetailsResponse/>"),
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN)
def test_what_is_not_the_protocol_is_malformed(body: bytes):
    with pytest.raises(UpstreamMalformed):
        wire.parse_reply(body)


@pytest.mark.parametrize("element", wire.RESPONSES)
def test_both_spellings_of_the_failure_are_understood(element: str):
    with pytest.raises(UpstreamUnauthorized) as caught:
        wire.parse_reply(envelope(f'<{element} status="UNAUTHORIZED">No</{element}>'))
    assert (caught.value.username, caught.value.address) == ("u", "192.0.2.1")
    with pytest.raises(UpstreamRejected) as rejected:
        wire.parse_reply(envelope(f'<{element} status="ERROR">\n Date range not valid\n</{element}>'))
    assert rejected.value.message == "Date range not valid"
    with pytest.raises(UpstreamFailed):
        wire.parse_reply(envelope(f'<{element} status="ERROR">Connection time out</{element}>'))


def test_repeated_clients_and_pairs_in_one_client_are_understood():
    call = '<Call ID="{}">' + START + "</Call>"
    body = envelope(
        '<GetCallDetailsResponse status="OK">'
        f"<Client><ClientCode>a</ClientCode><CallDetails>{call.format(1)}</CallDetails>"
        f"<ClientCode>b</ClientCode><CallDetails>{call.format(2)}</CallDetails></Client>"
        f"<Client><ClientCode>a</ClientCode><CallDetails>{call.format(3)}{call.format(1)}</CallDetails></Client>"
        "</GetCallDetailsResponse>"
    )
    found = wire.parse_reply(body).calls
    assert {code: [one.id for one in calls] for code, calls in found.items()} == {"a": ["3", "1"], "b": ["2"]}


def test_unknown_values_are_other_and_their_text_is_kept():
    body = reply(
        f'<Call ID="1">{START}<Result>Voicemail</Result><InfoDigits>z</InfoDigits>'
        "<SalesStatus>Lost</SalesStatus></Call>"
    )
    call = only(body, status=True)
    assert (call.result, call.phone_type) == (Result.OTHER, PhoneType.OTHER)
    assert call.status == Status(reviewed=False, sales=SalesStatus.OTHER, journal=None)
    assert call.extra == {"Result": "Voicemail", "InfoDigits": "z", "SalesStatus": "Lost"}


def test_unknown_elements_are_kept_and_counted():
    body = reply(
        f'<Call ID="1">{START}<X>1</X><X>2</X><Y k="v"><Z>3</Z></Y><Address><Country>US</Country></Address></Call>'
    )
    found = wire.parse_reply(body)
    assert found.calls["a"][0].extra == {"X": "1\n2", "Y.@k": "v", "Y.Z": "3", "Address.Country": "US"}
    assert found.unknown_elements == 5


NUMBERS = {"": (None, {}), "63": (63, {}), " 63 ": (63, {}), "-5": (None, {"Duration": "-5"})}
NUMBERS |= {text: (None, {"Duration": text}) for text in ("1:03", "6.5", "٣", "99999999999")}


@pytest.mark.parametrize(("text", "expected"), NUMBERS.items(), ids=NUMBERS)
def test_seconds_are_whole_numbers_or_null_with_their_text(text: str, expected: tuple[int | None, dict[str, str]]):
    call = only(reply(f'<Call ID="1">{START}<Duration>{text}</Duration></Call>'))
    assert (call.duration_seconds, call.extra) == expected


def test_calls_that_cannot_be_read_are_left_out_and_counted():
    body = reply(
        f'<Call>{START}</Call><Call ID="2"/><Call ID="3"><StartTime>soon</StartTime></Call><Call ID="4">{START}</Call>'
    )
    found = wire.parse_reply(body)
    assert [call.id for call in found.calls["a"]] == ["4"]
    assert found.unreadable == {"a": 3}


def test_a_journal_that_nobody_asked_for_is_dropped():
    call = only(reply(f'<Call ID="1">{START}<Journal>secret</Journal></Call>'))
    assert (call.status, call.extra) == (None, {})


def test_an_ignored_status_flag_is_told():
    found = wire.parse_reply(reply(f'<Call ID="1">{START}</Call>'), status=True)
    assert (found.status_ignored, found.calls["a"][0].status) == (True, None)


LIBERAL = {
    "a blank line first": b"\r\n \n" + REPLY,
    "a byte order mark": b"\xef\xbb\xbf" + REPLY,
    "UTF-16": REPLY.decode().encode("utf-16"),
    "NUL padding": REPLY + b"\0\0\0",
    "lower case": REPLY.replace(b"Call ID", b"call id")
    .replace(b"</Call>", b"</call>")
    .replace(b"StartTime", b"starttime"),
    "a namespace": REPLY.replace(b"<Callbutton ", b'<Callbutton xmlns="urn:x" '),
}


@pytest.mark.parametrize("body", LIBERAL.values(), ids=LIBERAL)
def test_oddities_are_read_as_if_they_were_not_there(body: bytes):
    assert wire.parse_reply(body, status=True).calls == wire.parse_reply(REPLY, status=True).calls


def test_a_fold_is_decided_by_the_order_of_the_reply():
    walls = ["00:30", "01:50", "01:10", "02:30"]
    calls = "".join(
        f'<Call ID="{number}"><StartTime>11/01/2026 {wall}:00</StartTime></Call>' for number, wall in enumerate(walls)
    )
    found = wire.parse_reply(reply(calls)).calls["a"]
    assert [f"{call.start_time:%H:%M}" for call in found] == ["05:30", "06:50", "07:10", "08:30"]
    assert [call.start_time_certainty.value for call in found] == ["exact", "inferred", "inferred", "exact"]


def test_a_request_lists_codes_and_flags_in_turn():
    edges = Edges("06/01/2026 06:59:59", None)
    text = wire.render_request(["a", "b"], edges, status=True).decode()
    listed = "<ClientCode>a</ClientCode><StatusFlag>true</StatusFlag><ClientCode>b</ClientCode>"
    assert listed in text
    read = xmltodict.parse(text)["Callbutton"]["CallbuttonService"]["GetCallDetailsRequest"]
    assert read == {
        "ClientCode": ["a", "b"],
        "StatusFlag": ["true", "true"],
        "StartDate": "06/01/2026 06:59:59",
        "EndDate": None,
    }


def test_the_sample_request_is_what_is_rendered():
    edges = Edges("06/01/2026 06:59:59", "06/01/2026 08:00:01")
    rendered = xmltodict.parse(wire.render_request(["8005550100", "8005550101"], edges))
    assert rendered == xmltodict.parse((SAMPLES / "request.xml").read_bytes())


@pytest.mark.parametrize("code", ["", "a b", "<", "a" * 65, "**", "é", "a\n"])
def test_a_bad_client_code_never_reaches_the_wire(code: str):
    with pytest.raises(ValueError, match="client code"):
        wire.render_request([code], Edges("06/01/2026 06:59:59", None))


TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="\ufffe\uffff"), max_size=12
)
ELEMENTS = st.dictionaries(
    st.sampled_from(["Campaign", "DID", "ANI", "OtherData", "Target", "IndexNumber", "DTMF", "Extra", "Other"]), TEXT
)


@given(st.lists(ELEMENTS, max_size=5), st.integers(1, 50))
def test_the_fast_path_equals_a_plain_reading_whatever_the_pieces(calls: list[dict[str, str]], size: int):
    listed = [{"@ID": str(number), "StartTime": "06/01/2026 07:30:00"} | call for number, call in enumerate(calls)]
    document = {"ClientCode": "a", "CallDetails": {"Call": listed}}
    response = xmltodict.unparse({"GetCallDetailsResponse": {"@status": "OK", "Client": document}}, full_document=False)
    body = envelope(response)
    plain = xmltodict.parse(body, force_list=("Call",))["Callbutton"]["CallbuttonService"]["GetCallDetailsResponse"]
    fast = in_pieces(body, size).calls["a"]
    expected = (plain["Client"]["CallDetails"] or {}).get("Call", [])
    assert len(fast) == len(expected)
    for call, element in zip(fast, expected, strict=True):
        names = ("Campaign", "DID", "ANI", "OtherData", "Target", "IndexNumber", "DTMF")
        values = (call.campaign, call.did, call.ani, call.other_data, call.target, call.index_number, call.dtmf)
        assert [(element.get(name) or "").strip() or None for name in names] == list(values)
        kept = {name: (element.get(name) or "").strip() for name in ("Extra", "Other")}
        assert call.extra == {name: text for name, text in kept.items() if text}


VALUES = st.one_of(
    TEXT.map(escape),
    st.sampled_from(
        ["", " x ", "&amp;&lt;&#65;&apos;", "a]]&gt;b", "line\r\nline\rline", "<![CDATA[<&amp;>]] ]]>", "]"]
    ),
    st.sampled_from(["<b>bold</b>", "<!-- note -->x", "<?pi?>x", "<![CDATA[</Call>]]>", "<!-- </Call> -->"]),
)
LEAVES = st.dictionaries(st.sampled_from([*record.FIELDS[1:], "Unknown"]), VALUES, max_size=6)
PLACES = st.dictionaries(st.sampled_from([*template.ADDRESS, "Country"]), VALUES, max_size=4)
GLUE = st.sampled_from(["", "", "\n  ", "\r\n\t", " text ", "<!-- <Call ID='9'> -->", "<Odd/>", "<![CDATA[x]]>"])
RECORDS = st.tuples(st.sampled_from(["1", "2", "3", " 4 ", ""]), LEAVES, PLACES, st.booleans(), GLUE)


def written(record_parts: tuple[str, dict[str, str], dict[str, str], bool, str]) -> str:
    identity, leaves, places, ordered, glue = record_parts
    leaves = {"StartTime": "11/01/2026 01:30:00"} | leaves
    names = sorted(leaves, key=[*record.FIELDS, "Unknown"].index) if ordered else list(leaves)
    parts = [f"<{name}>{leaves[name]}</{name}>" if leaves[name] else f"<{name}/>" for name in names]
    address = glue.join(
        f"<{name}>{places[name]}</{name}>" for name in sorted(places, key=[*template.ADDRESS, "Country"].index)
    )
    at = next((i for i, name in enumerate(names) if name in template.AFTER), len(parts)) if ordered else 0
    parts.insert(at, f"<Address>{address}</Address>" if address else "")
    return f'<Call ID="{identity}">{glue.join(parts)}</Call>{glue}'


def readings(pieces: list[bytes], *, status: bool = False) -> list[wire.Reply | None]:
    """A reply read with the template, and by expat alone; None if it is malformed."""
    found: list[wire.Reply | None] = []
    for most in (wire.MOST_MISSES, 0):
        with mock.patch.object(wire, "MOST_MISSES", most):
            try:
                found.append(fed(pieces, status=status))
            except UpstreamMalformed:
                found.append(None)
    return found


@settings(max_examples=400)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.lists(RECORDS, max_size=4), GLUE), max_size=4),
    st.integers(1, 400),
    st.booleans(),
)
def test_the_template_and_expat_read_the_same(clients: list[Any], size: int, status: bool):
    body = padded("".join(client(glue + "".join(map(written, records)), code) for code, records, glue in clients))
    by_template, by_expat = readings(cut(body, size), status=status)
    assert by_expat
    assert by_template == by_expat


HIDDEN = [
    ("", ""),
    ("<x>", "</x>"),
    ("<x a='1'>", "</x>"),
    ('<x a="', '"/>'),
    ("<x a='>", "'/>"),
    ("<x ", "/>"),
    ("<x a=", "/>"),
    ("</CallDetails ", ">"),
    ("<!-- ", " -->"),
    ("<?x ", " ?>"),
    ("<![CDATA[", "]]>"),
    ("&", ";"),
    ("]]>", ""),
    ("<CallDetails", ">"),
    ("<CallDetails><CallDetails>", "</CallDetails></CallDetails>"),
]


@pytest.mark.parametrize(("mark", "after"), [("!-- ", " -->"), ("?x ", " ?>"), ("![CDATA[", "]]>"), ("x ", "/>")])
@pytest.mark.parametrize("opening", ["<CallDetails>", "<CallDetails></Call>"])
def test_a_mark_that_comes_in_two_pieces_hides_records_all_the_same(mark: str, after: str, opening: str):
    early = f"{' ' * 700}<Client><ClientCode>a</ClientCode><CallDetails><x/><&#0;&#0;&#0;"
    late = f'{mark}{opening}<Call ID="9--9">{START}</Call>{after}</CallDetails></Client>'
    body = padded(early + late)
    at = body.index(late.encode())
    by_template, by_expat = readings([body[:at], body[at:]])
    assert by_template == by_expat


@pytest.mark.parametrize("size", [7, 10_000])
def test_text_after_what_looks_like_the_end_of_a_record_is_kept(size: int):
    body = reply(f'<Call ID="1">{START}<Foo>abc<Call></Call>d<b/><Call></Call>ef</Foo></Call>')
    by_template, by_expat = readings(cut(body, size))
    assert by_template == by_expat
    assert by_expat
    assert by_expat.calls["a"][0].extra["Foo"] == "abcdef"


@pytest.mark.parametrize("much", [0, 20_000])
def test_the_template_is_given_up_where_expat_alone_is_quicker(much: int):
    many = "".join(client(f'<Call ID="1">{START}</Call>', f"c{number}") for number in range(1000))
    body = padded(many).replace(b"<CallbuttonService>", b"<X>" + b"<y/>" * much + b"</X><CallbuttonService>")
    with mock.patch.object(template, "match", wraps=template.match) as tried:
        assert len(wire.parse_reply(body).calls) == 1000
    assert tried.call_count <= (0 if much else 2 * wire.MOST_MISSES)


@pytest.mark.parametrize(("before", "after"), HIDDEN)
@pytest.mark.parametrize("opening", ["<CallDetails>", "<CallDetails>\n", "", "</Call>"])
def test_a_record_is_no_record_where_expat_sees_none(before: str, after: str, opening: str):
    inside = f'{before}{opening}<Call ID="1">{START}</Call>{after}'
    for body in (reply(inside), reply(f'<Call ID="0">{START}</Call>{inside}'), padded(inside), padded(client(inside))):
        for size in (len(body), 50, 7):
            by_template, by_expat = readings(cut(body, size))
            assert by_template == by_expat


@pytest.mark.parametrize("layout", ["\n", " ", ""])
@pytest.mark.parametrize(("bad", "reason"), [("<A>&x;</A>", "undefined entity"), ("<A></B>", "mismatched tag")])
def test_a_malformed_reply_says_where_though_expat_has_not_read_it_all(layout: str, bad: str, reason: str):
    good = "".join(f'<Call ID="{number}">{layout}{START}{layout}</Call>{layout}' for number in range(500))
    body = reply(f'{good}<Call ID="x">{bad}</Call>{good}')
    for size in (len(body), 1000):
        with pytest.raises(UpstreamMalformed, match=f"{reason}$") as caught:
            in_pieces(body, size)
        place = body.index(bad.encode()) + (3 if "&" in bad else 5)
        line, column = body.count(b"\n", 0, place) + 1, place - body.rfind(b"\n", 0, place)
        assert f"at line {line}, column {column}:" in str(caught.value)


@pytest.mark.parametrize("odd", ["]]>", "&nbsp;", "&", "<", "&#x;"])
def test_a_record_that_is_not_well_formed_is_not_let_in_by_the_template(odd: str):
    good = f'<Call ID="1">{START}</Call>'
    with pytest.raises(UpstreamMalformed):
        wire.parse_reply(reply(f'{good}<Call ID="2">{START}<Journal>{odd}</Journal></Call>{good}'))


def test_records_after_a_comment_that_looks_like_records_are_not_made_up():
    good = f'<Call ID="1">{START}</Call>'
    trap = f'<!-- {good} <Call ID="2">{START}</Call> --><Call ID="3">{START}</Call>'
    assert [call.id for call in wire.parse_reply(reply(good + trap)).calls["a"]] == ["1", "3"]
    trap = f'<Call ID="2">{START}<Journal><![CDATA[{good}</Call><Call ID="9">]]></Journal></Call>'
    assert [call.id for call in wire.parse_reply(reply(good + trap)).calls["a"]] == ["1", "2"]


FAR = '<Call ID="far"><StartTime>{}</StartTime></Call>'


@pytest.mark.parametrize("wall", ["12/31/9999 23:59:59", "11/07/9999 01:30:00", "01/01/0001 00:00:00"])
def test_a_time_far_off_is_unreadable_and_takes_no_other_call_with_it(wall: str):
    found = wire.parse_reply(reply(f'<Call ID="1">{START}</Call>{FAR.format(wall)}'))
    assert ([call.id for call in found.calls["a"]], found.unreadable) == (["1"], {"a": 1})


PADDING = f"<Username>{'u' * 600}</Username>"  # so that the first records come in a piece of their own


def padded(response: str) -> bytes:
    return envelope(f'<GetCallDetailsResponse status="OK">{response}</GetCallDetailsResponse>').replace(
        b"<Username>u</Username>", PADDING.encode()
    )


def client(calls: str, code: str = "a") -> str:
    return f"<Client><ClientCode>{code}</ClientCode><CallDetails>{calls}</CallDetails></Client>"


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_the_end_of_a_record_in_a_comment_cuts_nothing(size: int):
    found = in_pieces(padded(client(f'<Call ID="1">{START}</Call>', "80055<!-- </Call> -->51212")), size)
    assert [call.id for call in found.calls["8005551212"]] == ["1"]
    body = padded(client(f'<Call ID="1">{START}</Call><Call ID="2">{START}<DTMF>1<!-- </Call> -->2</DTMF></Call>'))
    assert [call.dtmf for call in in_pieces(body, size).calls["a"]] == [None, "12"]


@pytest.mark.parametrize("target", ["xml-x", "yml", "xmlish"])
def test_records_in_a_processing_instruction_are_none(target: str):
    good = f'<Call ID="{{}}">{START}</Call>'
    hidden = f"<?{target} </Call>{good.format('evil')} ?>"
    found = wire.parse_reply(padded(client(good.format(1) + hidden + good.format(2))))
    assert [call.id for call in found.calls["a"]] == ["1", "2"]


NOT_CALLS_OF_A_CLIENT = {
    "CallDetails without a Client": f'<ClientCode>a</ClientCode><CallDetails><Call ID="1">{START}</Call></CallDetails>',
    "a Call without CallDetails": f'<Client><ClientCode>a</ClientCode><Call ID="1">{START}</Call></Client>',
    "a section in a section": client(
        f'<Call ID="1">{START}</Call><Call ID="2">{START}<Journal><![CDATA[ <![CDATA[ ]]> x ]]></Journal></Call>'
    ),
    "another response": f'{client("")}</GetCallDetailsResponse><GetCallDetailsResponse status="OK">{client("", "b")}',
}


@pytest.mark.parametrize("response", NOT_CALLS_OF_A_CLIENT.values(), ids=NOT_CALLS_OF_A_CLIENT)
def test_calls_out_of_their_place_are_malformed_rather_than_lost(response: str):
    with pytest.raises(UpstreamMalformed):
        wire.parse_reply(padded(response), status=True)


def test_a_client_of_many_codes_takes_time_in_proportion_and_loses_none():
    pair = f'<ClientCode>c{{}}</ClientCode><CallDetails><Call ID="1">{START}</Call></CallDetails><Odd/>'
    body = padded("<Client>" + "".join(pair.format(number) for number in range(3000)) + "</Client>" + client("", "z"))
    parser = wire.ReplyParser()
    most = 0
    for at in range(0, len(body), 1000):
        parser.feed(body[at : at + 1000])
        most = max(most, sum(len(one) for one in parser._tree.document.iter("Client")))
    found = parser.close()
    assert len(found.calls) == 3001
    assert all([call.client_code for call in calls] == [code] for code, calls in found.calls.items() if code != "z")
    assert found.unknown_elements == 3000
    assert most < 50  # what is taken does not stay on the tree


def test_text_around_nested_elements_and_all_values_of_repeated_ones_are_kept():
    body = reply(
        f'<Call ID="1">{START}<Journal>line1<br/>line2</Journal><Foo>a<b>c</b>d</Foo><Duration>5</Duration>'
        "<Duration>abc</Duration><SalesStatus>Made sale</SalesStatus><SalesStatus>Lost</SalesStatus></Call>"
    )
    call = only(body, status=True)
    assert call.status is not None
    assert call.status.journal == "line1line2"
    assert call.extra == {"Foo": "ad", "Foo.b": "c", "Duration": "5\nabc", "SalesStatus": "Made sale\nLost"}


CHARSETS = {
    "windows-1252 amid UTF-8": ("<a>caf\xe9 ".encode("cp1252") + "é ’</a>".encode(), None, "<a>café é ’</a>"),
    "ISO-8859-1 is windows-1252": (b"<?xml version='1.0' encoding='ISO-8859-1'?>\x92\x81", None, "’\x81"),
    "the header before the declaration": (b"<?xml version='1.0' encoding='utf-8'?>\xe9", "windows-1251", "й"),
    "the mark before the header": (b"\xef\xbb\xbf\xc3\xa9", "windows-1251", "é"),
    "an unknown charset": ("é".encode(), "utf-7", "é"),
    "illegal characters": (b"a\x00b\x1f&#0;&#x1F;&#65;", None, "ab&#65;"),
    "references in CDATA stay": (b"<![CDATA[&#0;]]>&#0;", None, "<![CDATA[&#0;]]>"),
}


@pytest.mark.parametrize(("data", "header", "expected"), CHARSETS.values(), ids=CHARSETS)
def test_bytes_become_text_however_they_are_cut(data: bytes, header: str | None, expected: str):
    for seed in range(20):
        draw, reader, text, at = random.Random(seed), TextReader(header), "", 0
        while at < len(data):
            size = draw.randrange(1, 9)
            text += reader.feed(data[at : at + size])
            at += size
        text += reader.feed(b"", last=True)
        assert text.rpartition("?>")[2] == expected


def test_repairs_are_counted():
    reader = TextReader("utf-8")
    reader.feed(b"\xe9\x00&#1;", last=True)
    assert reader.repairs == {"windows_1252": 1, "illegal_character": 2}


@given(st.binary(max_size=300), st.integers(1, 20))
def test_no_bytes_are_lost_or_crash_and_no_replacement_is_invented(data: bytes, size: int):
    reader = TextReader()
    whole = TextReader().feed(data, last=True)
    pieces = "".join(reader.feed(data[at : at + size]) for at in range(0, len(data), size))
    assert pieces + reader.feed(b"", last=True) == whole
    assert "\ufffd" not in whole or b"\xef\xbf\xbd" in data or data[:2] in (b"\xff\xfe", b"\xfe\xff")
