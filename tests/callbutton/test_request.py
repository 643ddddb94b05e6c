"""The body of a request."""

import pytest
import xmltodict

from gateway.callbutton.central_time import WallRange
from gateway.callbutton.client import render_request
from tests.support.paths import DATA

SAMPLE = DATA / "samples" / "request.xml"


def test_a_request_lists_codes_and_flags_in_turn():
    wall_range = WallRange("06/01/2026 06:59:59", None)
    text = render_request(["a", "b"], wall_range, status=True).decode()
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
    wall_range = WallRange("06/01/2026 06:59:59", "06/01/2026 08:00:01")
    rendered = xmltodict.parse(render_request(["8005550100", "8005550101"], wall_range))
    assert rendered == xmltodict.parse(SAMPLE.read_bytes())


def test_a_request_for_all_calls_has_null_dates_and_the_flag_element_that_is_set():
    body = render_request(["*"], None, status=True, flag_element="Status")
    assert body == (
        b'<?xml version="1.0"?>\n<Callbutton version="B"><CallbuttonService><GetCallDetailsRequest>'
        b"<ClientCode>*</ClientCode><Status>true</Status><StartDate></StartDate><EndDate></EndDate>"
        b"</GetCallDetailsRequest></CallbuttonService></Callbutton>\n"
    )


@pytest.mark.parametrize("code", ["", "a b", "<", "a" * 65, "**", "é", "a\n"])
def test_a_bad_client_code_is_never_sent(code: str):
    with pytest.raises(ValueError, match="client code"):
        render_request([code], WallRange("06/01/2026 06:59:59", None))
