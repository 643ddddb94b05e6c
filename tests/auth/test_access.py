"""The access rules of gateway/access.py, without a server."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from msgspec.structs import asdict, replace

from gateway.access import (
    ANONYMOUS,
    SCOPES,
    Consumer,
    Rate,
    authorized_codes,
    can_count_callers,
    can_filter_by,
    can_read,
    mask_call,
    mask_number,
    parse_rate,
    require_list_scopes,
    require_scope,
)
from gateway.errors import Forbidden
from gateway.extra_fields import ExtraFields
from gateway.model import Call, CallerAddress, CallResult, CallStatus, PhoneType, SalesStatus, StartTimeCertainty

ADDRESS = CallerAddress(
    first_name="Ada", middle_initial=None, last_name="Lovelace", street="1 Main St", secondary=None, city="Chicago",
    state="IL", zip="60601", zip4=None,
)  # fmt: skip
CALL = Call(
    id="1",
    client_code="8005550100",
    start_time=datetime(2026, 11, 1, tzinfo=UTC),
    start_time_certainty=StartTimeCertainty.EXACT,
    campaign="4018",
    did="8005550100",
    ani="3125550161",
    other_data="print ad",
    phone_type=PhoneType.OTHER,
    target="7735550158",
    result=CallResult.OTHER,
    duration_seconds=351,
    talk_time_seconds=332,
    index_number="0042",
    dtmf="1",
    recording_url="http://callbutton.example/secret",
    address=ADDRESS,
    status=CallStatus(reviewed=True, sales=SalesStatus.OTHER, journal="Called Ada back"),
    extra={
        "Result": "Fax",
        "InfoDigits": "x",
        "SalesStatus": "Lost",
        "Journal": "a\nb",
        "CallerEmail": "ada@example",
        "Campaign.Note": "spring",
        "VoiceDirectory": "http://callbutton.example/secret",
        "Address.Country": "US",
    },
)
EVERY_FIELD = tuple(asdict(CALL))


def consumer(*scopes: str, clients: tuple[str, ...] = ("*",)) -> Consumer:
    return Consumer(name="c", clients=clients, scopes=frozenset(scopes))


SEEN = [
    (("8005550100",), "8005550100", True),
    (("8005550100",), "8005550101", False),
    (("8005550100",), "80055501000", False),
    (("800555*",), "8005550100", True),
    (("800555*",), "800555", True),
    (("800555*",), "800556", False),
    (("800555*",), "1800555", False),
    (("*",), "anything", True),
    (("a", "b*"), "bc", True),
    (("abc",), "ABC", False),
    ((), "8005550100", False),
]


@pytest.mark.parametrize(("patterns", "code", "seen"), SEEN)
def test_a_consumer_sees_the_clients_that_its_patterns_name(patterns: tuple[str, ...], code: str, seen: bool):
    assert can_read(consumer("calls", clients=patterns), code) is seen


def test_codes_asked_by_name_are_read_or_forbidden_together():
    limited = consumer("calls", clients=("a", "b*"))
    assert authorized_codes(limited, ["a", "b1"]) == ("a", "b1")
    for codes in (["a", "c"], ["c"]):
        with pytest.raises(Forbidden):
            authorized_codes(limited, codes)


@pytest.mark.parametrize(
    ("patterns", "read"),
    [(("a", "b", "a"), ("a", "b")), (("a", "b*"), ("*",)), (("*",), ("*",))],
    ids=["exact codes", "a prefix among them", "all"],
)
def test_every_client_means_the_consumers_own(patterns: tuple[str, ...], read: tuple[str, ...]):
    assert authorized_codes(consumer("calls", clients=patterns), ["*"]) == read


def test_a_consumer_without_clients_reads_nothing():
    with pytest.raises(Forbidden):
        authorized_codes(consumer("calls", clients=()), ["*"])


def test_a_consumer_with_every_scope_sees_all_but_the_upstreams_recording_address():
    shown = mask_call(CALL, ANONYMOUS, status=True)
    extra = {name: text for name, text in CALL.extra.items() if name != "VoiceDirectory"}
    assert shown == replace(CALL, recording_url=None, extra=extra)
    clean = replace(CALL, recording_url=None, extra={})
    assert mask_call(clean, ANONYMOUS, status=True) is clean


def test_without_personal_what_tells_of_the_caller_is_masked_and_the_rest_is_not():
    shown = mask_call(CALL, consumer("calls", "status"), status=True)
    assert shown == replace(
        CALL,
        ani="********61",
        address=None,
        dtmf=None,
        other_data=None,
        recording_url=None,
        status=CallStatus(reviewed=True, sales=SalesStatus.OTHER, journal=None),
        extra={"Result": "Fax", "InfoDigits": "x", "SalesStatus": "Lost"},
    )


@pytest.mark.parametrize("scopes", [("calls", "personal"), ("calls",)], ids=["personal", "neither"])
def test_without_the_scope_there_is_no_status_raw_or_read(scopes: tuple[str, ...]):
    for asked in (True, False):
        shown = mask_call(CALL, consumer(*scopes), status=asked)
        assert shown.status is None
        assert not {"SalesStatus", "ReviewedStatus", "Journal"} & set(shown.extra)


def test_status_that_was_not_asked_for_is_not_shown():
    shown = mask_call(CALL, ANONYMOUS, status=False)
    assert shown.status is None
    assert "SalesStatus" not in shown.extra


def test_the_operator_may_call_elements_public_but_not_the_journal_nor_the_recording_address():
    public = frozenset({"Campaign.Note", "Journal", "VoiceDirectory"})
    shown = mask_call(CALL, consumer("calls", "status"), status=True, extras=ExtraFields(named_public=public))
    assert set(shown.extra) == {"Result", "InfoDigits", "SalesStatus", "Campaign.Note"}


def test_nothing_personal_is_anywhere_in_a_masked_call():
    text = repr(mask_call(CALL, consumer("calls"), status=True))
    for secret in ("Ada", "Lovelace", "31255501", "Main St", "print ad", "60601", "secret", "ada@"):
        assert secret not in text


@pytest.mark.parametrize(
    ("number", "shown"),
    [("3125550161", "********61"), ("+13125550161", "********61"), ("5550161", "********61"), ("911", "********"),
     ("Anonymous", "********"), ("312555٠١", "********"), (None, None)],
)  # fmt: skip
def test_a_number_keeps_two_digits(number: str | None, shown: str | None):
    assert mask_number(number) == shown


def test_what_is_masked_is_not_searched():
    assert [can_filter_by(consumer("calls"), name) for name in ("ani", "recorded", "result")] == [False, False, True]
    assert can_filter_by(consumer("calls", "recordings"), "recorded")
    assert can_filter_by(consumer("calls", "personal"), "ani")
    with pytest.raises(Forbidden):
        require_list_scopes(consumer("calls"), ["ani"], status=False)
    with pytest.raises(Forbidden, match="recordings"):
        require_list_scopes(consumer("calls", "personal"), ["recorded"], status=False)


def test_a_masked_consumer_gets_distinct_counts_of_five_calls_at_least():
    assert [can_count_callers(consumer("calls"), calls) for calls in (0, 4, 5)] == [False, False, True]
    assert can_count_callers(consumer("calls", "personal"), 1)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_scope_is_required_by_name(scope: str):
    require_scope(consumer(scope), scope)
    with pytest.raises(Forbidden, match=scope):
        require_scope(consumer(*(other for other in SCOPES if other != scope)), scope)


def test_status_and_calls_need_their_scopes():
    require_list_scopes(consumer("calls"), [], status=False)
    for scopes, status in ((("calls",), True), (("status",), True), (("status",), False)):
        with pytest.raises(Forbidden):
            require_list_scopes(consumer(*scopes), [], status=status)


@pytest.mark.parametrize(
    ("text", "rate"), [("600/minute", Rate(600, 60)), ("1/second", Rate(1, 1)), ("9/day", Rate(9, 86400))]
)
def test_a_rate_is_read(text: str, rate: Rate):
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "0/minute", "600", "600/fortnight", "-1/minute", "1.5/minute", "600 / minute"])
def test_what_is_no_rate_is_refused(text: str):
    with pytest.raises(ValueError, match="is not a rate"):
        parse_rate(text)
