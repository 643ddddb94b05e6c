"""Generate replies in the layouts that a gateway receives. Needs only the standard library.

    python -m benchmarks.replies document|field|field-split CALLS > reply.xml

- document: the layout of the protocol document: indented, with every element (1.2 kB per call)
- field: the layout that real servers send: no white space, some elements missing, three undocumented elements (one in
  CDATA), padded values, and an occasional ZIP without its leading zero (0.6 kB per call)
- field-split: the same, with one `Client` element per call
"""

from __future__ import annotations

import random
import sys

LAYOUTS = ("document", "field", "field-split")
HEAD = """<?xml version="1.0"?>
<Callbutton version="B">
  <Username>partner</Username>
  <Authentication>192.0.2.7</Authentication>
  <CallbuttonService>
    <GetCallDetailsResponse status="OK">
"""
TAIL = "    </GetCallDetailsResponse>\n  </CallbuttonService>\n</Callbutton>\n"
RECORDING = "http://192.0.2.1/cb/main/jsp/mates/cBEventCallRecordingURL.jsp?id={id}"
DOCUMENT_CALL = f"""          <Call ID="{{id}}">
            <StartTime>{{start}}</StartTime>
            <Campaign>44{{number}}</Campaign>
            <DID>800555{{number:04}}</DID>
            <ANI>312{{ani:07}}</ANI>
            <OtherData>web</OtherData>
            <InfoDigits>c</InfoDigits>
            <Target>773555{{target:04}}</Target>
            <Result>Connected</Result>
            <Duration>{{duration}}</Duration>
            <TalkTime>{{talk}}</TalkTime>
            <IndexNumber>0042</IndexNumber>
            <VoiceDirectory>{RECORDING}</VoiceDirectory>
            <Address>
              <FirstName>Ada</FirstName>
              <MiddleInitial>Q</MiddleInitial>
              <LastName>Lovelace {{number}}</LastName>
              <StreetAddress>{{target}} Lake Shore Drive</StreetAddress>
              <SecondaryAddress></SecondaryAddress>
              <City>Chicago</City>
              <State>IL</State>
              <ZIP>60601</ZIP>
              <ZIP4>0123</ZIP4>
            </Address>
            <ReviewedStatus>Reviewed</ReviewedStatus>
            <DTMF>1</DTMF>
            <SalesStatus>Made sale</SalesStatus>
            <Journal>Called back on Tuesday, wants a quote {{id}}.</Journal>
          </Call>
"""


def facts(index: int) -> dict[str, int | str]:
    """The values of the call at an index, the same in every layout."""
    return {
        "id": 100_000 + index,
        "start": f"06/{1 + index % 28:02}/2026 {index % 24:02}:{index % 60:02}:17",
        "number": index % 9 + 100,
        "ani": index % 9_999_999,
        "target": index % 9999,
        "duration": index % 600,
        "talk": index % 500,
    }


def document_call(index: int) -> str:
    """A record in the layout of the protocol document."""
    return DOCUMENT_CALL.format(**facts(index))


def field_call(index: int, draw: random.Random) -> str:
    """A record as real servers send it."""
    say = facts(index)
    sale = f"Sale {index % 9}"
    leaves = {
        "StartTime": say["start"],
        "Campaign": f"  Spring {sale} " if index % 5 == 0 else sale,
        "DID": f"800555{say['number']:04}",
        "ANI": f"312{say['ani']:07}" if draw.random() > 0.01 else "",
        "OtherData": "",
        "InfoDigits": "c" if draw.random() < 0.4 else "",
        "Target": f"773555{say['target']:04}",
        "Result": draw.choice(("Connected", "Connected", "Connected", "No Answer", "Busy", "Abandoned")),
        "Duration": say["duration"],
        "TalkTime": say["talk"],
        "IndexNumber": "",
    }
    text = "".join(f"<{name}>{value}</{name}>" for name, value in leaves.items())
    if draw.random() < 0.7:
        text += f"<VoiceDirectory>{RECORDING.format(id=say['id'])}</VoiceDirectory>"
    text += f"<CallerName><![CDATA[SMITH & SON {index % 77}]]></CallerName><CustomA>AX-{index % 50}</CustomA>"
    text += f"<CallerNANPAZipCode>{index % 9999}</CallerNANPAZipCode>"
    if draw.random() < 0.5:
        text += (
            f"<Address><FirstName>Ann</FirstName><LastName>O&apos;Brien {index % 40}</LastName>"
            f"<StreetAddress>{say['target']} Main St</StreetAddress><City>Boston</City><State>MA</State>"
            f"<ZIP>{'2134' if draw.random() < 0.1 else '02134'}</ZIP></Address>"
        )
    return f'<Call ID="{say["id"]}">{text}<DTMF>1</DTMF></Call>'


def client(code: int, calls: str) -> str:
    """A `Client` element."""
    return f"<Client><ClientCode>8005550{code}</ClientCode><CallDetails>{calls}</CallDetails></Client>\n"


def reply(layout: str, calls: int, seed: int = 1) -> bytes:
    """Generate a reply with a number of calls in a layout. Raises ValueError for an unknown layout."""
    draw = random.Random(seed)
    if layout == "document":
        body = client(100, "\n" + "".join(map(document_call, range(calls))))
    elif layout == "field":
        body = client(100, "".join(field_call(index, draw) for index in range(calls)))
    elif layout == "field-split":
        body = "".join(client(100 + index % 9, field_call(index, draw)) for index in range(calls))
    else:
        raise ValueError(f"unknown layout {layout!r}; there are {', '.join(LAYOUTS)}")
    return (HEAD + body + TAIL).encode()


if __name__ == "__main__":
    sys.stdout.buffer.write(reply(sys.argv[1], int(sys.argv[2])))
