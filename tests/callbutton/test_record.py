"""One call detail record."""

from xml.etree.ElementTree import fromstring

import pytest

from gateway.callbutton.record import RecordReader
from gateway.model import (
    Call,
    CallResult,
    CallStatus,
    PhoneType,
    SalesStatus,
    StartTimeCertainty,
    UnreadableCall,
)

START = "<StartTime>06/01/2026 07:30:00</StartTime>"


def read(elements: str, *, status: bool = False, attributes: str = 'ID="1"') -> Call:
    call = RecordReader(status=status).read(fromstring(f"<Call {attributes}>{elements}</Call>"), "a")
    assert isinstance(call, Call)
    return call


def test_a_record_with_a_start_alone_is_a_call_of_nothing_else():
    assert read(START) == Call(
        id="1",
        client_code="a",
        start_time=read(START).start_time,
        start_time_certainty=StartTimeCertainty.EXACT,
        campaign=None,
        did=None,
        ani=None,
        other_data=None,
        phone_type=PhoneType.NORMAL,
        target=None,
        result=CallResult.OTHER,
        duration_seconds=None,
        talk_time_seconds=None,
        index_number=None,
        dtmf=None,
        recording_url=None,
        address=None,
        status=None,
        extra={},
    )


def test_a_wall_time_becomes_an_instant():
    assert read(START).start_time.isoformat() == "2026-06-01T12:30:00+00:00"


def test_unknown_values_are_other_and_their_text_is_kept():
    call = read(
        f"{START}<Result>Voicemail</Result><InfoDigits>z</InfoDigits><SalesStatus>Lost</SalesStatus>"
        "<ReviewedStatus>Maybe</ReviewedStatus>",
        status=True,
    )
    assert (call.result, call.phone_type) == (CallResult.OTHER, PhoneType.OTHER)
    assert call.status == CallStatus(reviewed=False, sales=SalesStatus.OTHER, journal=None)
    assert call.extra == {"Result": "Voicemail", "InfoDigits": "z", "SalesStatus": "Lost", "ReviewedStatus": "Maybe"}


VALUES = {
    "other case": ("<Result>CONNECTED</Result><InfoDigits>C</InfoDigits>", CallResult.CONNECTED, PhoneType.CELL),
    "other white space": (
        "<Result> No\n answer </Result><InfoDigits> p</InfoDigits>",
        CallResult.NO_ANSWER,
        PhoneType.PAYPHONE,
    ),
    "empty": ("<Result/><InfoDigits></InfoDigits>", CallResult.OTHER, PhoneType.NORMAL),
}


@pytest.mark.parametrize(("elements", "result", "phone_type"), VALUES.values(), ids=VALUES)
def test_values_are_compared_without_case_and_white_space(elements: str, result: CallResult, phone_type: PhoneType):
    call = read(START + elements)
    assert (call.result, call.phone_type, call.extra) == (result, phone_type, {})


NUMBERS = {"": (None, {}), "63": (63, {}), " 63 ": (63, {}), "7200": (7200, {}), "-5": (None, {"Duration": "-5"})}
NUMBERS |= {text: (None, {"Duration": text}) for text in ("1:03", "6.5", "٣", "99999999999")}


@pytest.mark.parametrize(("text", "expected"), NUMBERS.items(), ids=NUMBERS)
def test_seconds_are_whole_numbers_or_null_with_their_text(text: str, expected: tuple[int | None, dict[str, str]]):
    call = read(f"{START}<Duration>{text}</Duration>")
    assert (call.duration_seconds, call.extra) == expected


def test_unknown_elements_are_kept_and_counted():
    reader = RecordReader(status=False)
    element = fromstring(
        f'<Call ID="1" k="v">{START}<X>1</X><X>2</X><Y k="v"><Z>3</Z></Y>'
        "<Address><Country>US</Country></Address></Call>"
    )
    call = reader.read(element, "a")
    assert isinstance(call, Call)
    assert call.extra == {"@k": "v", "X": "1\n2", "Y.@k": "v", "Y.Z": "3", "Address.Country": "US"}
    assert reader.unknown == 6


def test_text_around_nested_elements_and_all_values_of_repeated_ones_are_kept():
    call = read(
        f"{START}<Journal>line1<br/>line2</Journal><Foo>a<b>c</b>d</Foo><Duration>5</Duration>"
        "<Duration>abc</Duration><SalesStatus>Made sale</SalesStatus><SalesStatus>Lost</SalesStatus>",
        status=True,
    )
    assert call.status is not None
    assert call.status.journal == "line1line2"
    assert call.duration_seconds is None
    assert call.extra == {"Foo": "ad", "Foo.b": "c", "Duration": "5\nabc", "SalesStatus": "Made sale\nLost"}


def test_of_several_addresses_the_last_counts_and_extra_has_all():
    call = read(f"{START}<Address><City>A</City><X>1</X></Address><Address><City>B</City></Address>")
    assert call.address is not None
    assert call.address.city == "B"
    assert call.extra == {"Address.City": "A\nB", "Address.X": "1"}


def test_an_unknown_element_is_not_taken_for_a_known_one_of_another_place():
    call = read(f"{START}<City>A</City><Address.City>B</Address.City><Address><ANI>C</ANI><DTMF/></Address>")
    assert (call.address, call.ani) == (None, None)
    assert call.extra == {"City": "A", "Address.City": "B", "Address.ANI": "C"}


def test_an_unknown_element_and_a_repeated_one_of_the_same_dotted_name_are_both_kept():
    named = "<Address.City>A</Address.City>"
    address = "<Address><City>B</City><City>C</City></Address>"
    assert read(START + named + address).extra == {"Address.City": "A\nB\nC"}
    assert read(START + address + named + "<Address.City/>").extra == {"Address.City": "B\nC\nA"}


def test_a_journal_that_was_not_asked_for_is_dropped_with_all_that_is_in_it():
    call = read(f"{START}<Journal>se<b>cr</b>et</Journal><Journal>more</Journal>")
    assert (call.status, call.extra) == (None, {})


UNREADABLE = {
    "no id": ("", START),
    "an id that is too long": (f'ID="{"1" * 201}"', START),
    "an empty id": ('ID=" "', START),
    "no StartTime": ('ID="1"', ""),
    "a StartTime in words": ('ID="1"', "<StartTime>soon</StartTime>"),
    "a year far ahead": ('ID="1"', "<StartTime>12/31/9999 23:59:59</StartTime>"),
    "a fold far ahead": ('ID="1"', "<StartTime>11/07/9999 01:30:00</StartTime>"),
    "the year 1": ('ID="1"', "<StartTime>01/01/0001 00:00:00</StartTime>"),
}


@pytest.mark.parametrize(("attributes", "elements"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_record_without_an_id_or_a_readable_start_is_no_call(attributes: str, elements: str):
    record = RecordReader(status=False).read(fromstring(f"<Call {attributes}>{elements}</Call>"), "a")
    assert isinstance(record, UnreadableCall)


@pytest.mark.parametrize("name", ["Foo", "Journal", "City"])
def test_elements_nested_without_end_are_refused(name: str):
    with pytest.raises(ValueError, match="too deeply"):
        read(f"{START}{f'<{name}>' * 5000}{f'</{name}>' * 5000}", status=True)
