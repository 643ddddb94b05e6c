"""XML bytes to JSON bytes, side by side with bare expat and with xmltodict + msgspec.convert, in one run."""

import statistics
import time
from collections.abc import Callable
from xml.parsers import expat

import msgspec
import xmltodict

from gateway.callbutton.wire import ReplyParser
from gateway.model import Call

CALL = (
    '<Call ID="{0}"><StartTime>06/01/2026 07:{1:02}:00</StartTime><Campaign>4471</Campaign><DID>8005550100</DID>'
    "<ANI>312555{0:04}</ANI><OtherData>web</OtherData><InfoDigits>c</InfoDigits><Target>3125550199</Target>"
    "<Result>Connected</Result><Duration>63</Duration><TalkTime>51</TalkTime><IndexNumber>0042</IndexNumber><Address>"
    "<FirstName>Ada {0}</FirstName><MiddleInitial>Q</MiddleInitial><LastName>Lovelace {0}</LastName><StreetAddress>{0} "
    "Main St</StreetAddress><SecondaryAddress></SecondaryAddress><City>Boston</City><State>MA</State><ZIP>02134</ZIP>"
    "<ZIP4>0123</ZIP4></Address><DTMF>1</DTMF></Call>"
)
HEAD = '<?xml version="1.0"?><Callbutton><CallbuttonService><GetCallDetailsResponse status="OK"><Client>'
TAIL = "</CallDetails></Client></GetCallDetailsResponse></CallbuttonService></Callbutton>"
PIECE = 65536


def document(count: int) -> bytes:
    calls = "".join(CALL.format(number, number % 60) for number in range(count))
    return f"{HEAD}<ClientCode>8005550100</ClientCode><CallDetails>{calls}{TAIL}".encode()


def ours(body: bytes) -> bytes:
    parser = ReplyParser()
    for at in range(0, len(body), PIECE):
        parser.feed(body[at : at + PIECE])
    return msgspec.json.encode({"data": parser.close().calls["8005550100"]})


def bare_expat(body: bytes) -> None:
    parser = expat.ParserCreate()
    for at in range(0, len(body), PIECE):
        parser.Parse(body[at : at + PIECE], False)
    parser.Parse(b"", True)


def plain(body: bytes) -> bytes:
    """Translate as an afternoon's code would, with none of the checks."""
    response = xmltodict.parse(body, force_list=("Call",))["Callbutton"]["CallbuttonService"]["GetCallDetailsResponse"]
    address = (
        "FirstName",
        "MiddleInitial",
        "LastName",
        "StreetAddress",
        "SecondaryAddress",
        "City",
        "State",
        "ZIP",
        "ZIP4",
    )
    calls = [
        {
            "id": call["@ID"],
            "clientCode": "8005550100",
            "startTime": "2026-06-01T12:00:00Z",
            "startTimeCertainty": "exact",
            "campaign": call["Campaign"],
            "did": call["DID"],
            "ani": call["ANI"],
            "otherData": call["OtherData"],
            "phoneType": "cell",
            "target": call["Target"],
            "result": call["Result"].lower(),
            "durationSeconds": int(call["Duration"]),
            "talkTimeSeconds": int(call["TalkTime"]),
            "indexNumber": call["IndexNumber"],
            "dtmf": call["DTMF"],
            "recordingUrl": None,
            "address": dict(zip(FIELDS, map(call["Address"].get, address), strict=True)),
            "status": None,
            "extra": {},
        }
        for call in response["Client"]["CallDetails"]["Call"]
    ]
    return msgspec.json.encode({"data": msgspec.convert(calls, list[Call])})


FIELDS = ("firstName", "middleInitial", "lastName", "street", "secondary", "city", "state", "zip", "zip4")


def seconds(work: Callable[[bytes], object], body: bytes) -> float:
    began = time.perf_counter()
    work(body)
    return time.perf_counter() - began


def main() -> None:
    print(f"{'calls':>8} {'MB':>6} {'ours s':>8} {'vs xmltodict':>13} {'vs bare expat':>14}")
    for count, rounds in ((10, 50), (1000, 7), (100_000, 3)):
        body = document(count)
        times = [[seconds(work, body) for work in (ours, plain, bare_expat)] for _ in range(rounds)]
        ratios = [(b / a, c / a) for a, b, c in times]
        faster, of_expat = (statistics.median(column) for column in zip(*ratios, strict=True))
        our = statistics.median(row[0] for row in times)
        print(f"{count:>8} {len(body) / 1e6:>6.2f} {our:>8.4f} {faster:>12.2f}x {of_expat:>14.2f}")
    print("bars: 3.5 x xmltodict, 0.25 of bare expat")


if __name__ == "__main__":
    main()
