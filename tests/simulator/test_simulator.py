"""The simulator writes replies like real servers, or with `plain` like the protocol document."""

from __future__ import annotations

import asyncio
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from gateway.simulator.calls import SimulatedCall, calls_of_hour
from gateway.simulator.server import PATH, Options, create
from tests.support.stand import NOW

CODE = "8005550100"
DOCUMENT = (
    "StartTime Campaign DID ANI OtherData InfoDigits Target Result Duration TalkTime IndexNumber VoiceDirectory "
    "Address ReviewedStatus DTMF SalesStatus Journal"
).split()
ADDRESS = "FirstName MiddleInitial LastName StreetAddress SecondaryAddress City State ZIP ZIP4".split()
OPTIONAL = {"VoiceDirectory", "Address"}
STATUS = {"ReviewedStatus", "SalesStatus", "Journal"}
UNKNOWN = ["CallerName", "CustomA", "CallerNANPAZipCode"]
START = "11/16/2026 00:00:00"
BODY = """<?xml version="1.0"?><Callbutton version="B"><CallbuttonService><GetCallDetailsRequest>
<ClientCode>{code}</ClientCode><StatusFlag>{flag}</StatusFlag><StartDate>{start}</StartDate><EndDate></EndDate>
</GetCallDetailsRequest></CallbuttonService></Callbutton>"""
HOURS = range(int(NOW // 3600) - 48, int(NOW // 3600))


def reply(options: Options, *, status: bool = True) -> str:
    """Return the reply to a POST for the calls of the last two days."""
    request = BODY.format(code=CODE, flag="true" if status else "false", start=START).encode()
    sent = b""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": request}

    async def send(message: dict[str, Any]) -> None:
        nonlocal sent
        sent += message.get("body", b"")

    scope = {"type": "http", "method": "POST", "path": PATH, "client": ("127.0.0.1", 1)}
    asyncio.run(create(options, lambda: NOW)(scope, receive, send))
    return sent.decode()


def calls(options: Options, *, status: bool = True) -> list[ET.Element]:
    found = list(ET.fromstring(reply(options, status=status)).iter("Call"))
    assert len(found) > 300
    return found


def texts(elements: list[ET.Element]) -> list[str]:
    """Return the text of each element of the calls, including those within Address."""
    return [
        element.text or "" for call in elements for element in call.iter() if element is not call and not len(element)
    ]


def drawn(**options: Any) -> list[SimulatedCall]:
    return [call for hour in HOURS for call in calls_of_hour(1, CODE, hour, 200, **options)]


@pytest.mark.parametrize("status", [True, False], ids=["with status", "without status"])
def test_plain_calls_have_the_elements_of_the_document_in_its_order(status: bool):
    shapes = {tuple(element.tag for element in call) for call in calls(Options(plain=True), status=status)}
    without_status = [name for name in DOCUMENT if status or name not in STATUS]
    assert shapes == {
        tuple(name for name in without_status if name not in left_out)
        for left_out in ([], ["VoiceDirectory"], ["Address"], ["VoiceDirectory", "Address"])
    }
    addresses = {tuple(element.tag for element in call.find("Address") or ()) for call in calls(Options(plain=True))}
    assert addresses == {tuple(ADDRESS), ()}


def test_calls_have_unknown_elements_before_the_address_and_else_the_document_s_order():
    for call in calls(Options()):
        names = [element.tag for element in call]
        place = names.index(UNKNOWN[0])
        assert names[place : place + len(UNKNOWN)] == UNKNOWN
        assert names[place - 1] in ("IndexNumber", "VoiceDirectory")
        assert names[place + len(UNKNOWN)] in ("Address", "ReviewedStatus")
        known = names[:place] + names[place + len(UNKNOWN) :]
        assert known == [name for name in DOCUMENT if name not in OPTIONAL or name in known]


def test_one_unknown_element_is_cdata():
    text = reply(Options())
    assert text.count("<![CDATA[") == text.count("<CallerName><![CDATA[") == text.count("<Call ID=") > 0
    assert any(
        "&" in name.text for call in calls(Options()) if (name := call.find("CallerName")) is not None and name.text
    )


def test_values_are_padded_and_zip_codes_lack_their_leading_zero_now_and_then():
    found = calls(Options())
    padded = [text for text in texts(found) if text != text.strip()]
    zips = [element.text for call in found for element in call.iter("ZIP")]
    assert 0.1 * len(found) < len(padded) < 0.3 * len(found)
    assert 0 < zips.count("2134") < zips.count("02134")


def test_plain_replies_have_none_of_the_variations():
    found, text = calls(Options(plain=True)), reply(Options(plain=True))
    assert not [name for name in UNKNOWN if name in text]
    assert "CDATA" not in text
    assert [text for text in texts(found) if text != text.strip()] == []
    assert "2134" not in [element.text for call in found for element in call.iter("ZIP")]


def test_the_variations_change_no_other_value_of_a_call():
    def known(call: SimulatedCall) -> dict[str, object]:
        elements = [(name, text.strip()) for name, text in call.elements if name not in UNKNOWN]
        address = [(name, text.zfill(5) if name == "ZIP" else text) for name, text in call.address]
        return vars(call) | {"elements": elements, "address": address}

    in_the_field, plain = drawn(), drawn(plain=True)
    assert len(plain) > 300
    assert in_the_field != plain
    assert [known(call) for call in in_the_field] == [known(call) for call in plain]


def test_the_same_seed_gives_the_same_reply_and_another_seed_another():
    assert reply(Options()) == reply(Options())
    assert reply(Options(seed=2)) != reply(Options())


def test_the_fault_of_lower_case_changes_names_alone():
    def values(fault: str | None) -> list[str]:
        return texts(list(ET.fromstring(reply(Options(faults=(fault,) if fault else ()))).iter()))

    text = reply(Options(faults=("lower-case",)))
    assert "<callername><![CDATA[" in text
    assert "<StartTime>" not in text
    assert values("lower-case") == values(None)


def test_a_seed_gives_the_calls_that_it_has_always_given():
    (call,) = [call for call in calls_of_hour(1, CODE, 498200, 200, plain=True) if call.identity == "498200007"]
    assert call == SimulatedCall(
        identity="498200007",
        start=1793522991,
        published=1793523342,
        elements=(
            ("StartTime", "11/01/2026 02:49:51"),
            ("Campaign", "4018"),
            ("DID", CODE),
            ("ANI", "3125550161"),
            ("OtherData", "print ad"),
            ("InfoDigits", ""),
            ("Target", "7735550158"),
            ("Result", "Connected"),
            ("Duration", "351"),
            ("TalkTime", "332"),
            ("IndexNumber", ""),
            (
                "VoiceDirectory",
                "http://callbutton.example/cb/main/jsp/mates/cBEventCallRecordingURL.jsp?id=498200007",
            ),
        ),
        address=(),
        after_address=(
            ("ReviewedStatus", "Unreviewed"),
            ("DTMF", "1"),
            ("SalesStatus", "Called back"),
            ("Journal", "No voicemail"),
        ),
    )
