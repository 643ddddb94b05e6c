"""The findings of the conformance report: each with its values, and the meaning of each value. Pure.

Rule: a finding states an observation. Without one it is unknown, with the reason.
"""

from __future__ import annotations

from msgspec import Struct

# The meaning of each value of a finding. Words in braces come from the replies.
TEXTS = {
    "every-client": {"answered": "The client code `*` is answered."},
    "span-per-post": {
        "a-day": "A day is answered in one POST. Longer windows were not tried.",
        "large-days": "A day is answered in one POST. At its size, a window of GATEWAY_UPSTREAM_MAX_SPAN would exceed "
        "GATEWAY_UPSTREAM_MAX_BYTES.",
        "shorter": "{hours} hours are answered in one POST, {more} are not.",
    },
    "codes-echoed": {
        "as-asked": "A client code is echoed as it was asked.",
        "otherwise": "A client code is answered under another code. The gateway learns which codes are, and asks for "
        "each of them alone.",
        "with-others": "The reply to a client code lists other codes too. The gateway leaves them out.",
    },
    "status-flag": {
        "as-set": "The element <{element}> asks for the status of calls.",
        "other-element": "The element <{element}> asks for the status of calls; the element that is set does not.",
        "unasked": "The status of calls is sent without being asked for.",
        "not-found": "No element that was tried asks for the status of calls, so that it stays null: {tried}. Ask "
        "Callbutton for its name, and set GATEWAY_STATUS_FLAG_ELEMENT.",
    },
    "unknown-request-elements": {
        "ignored": "An unknown element of a request is ignored.",
        "refused": "A request with an unknown element is refused.",
    },
    "end-date": {
        "inclusive": "A call that begins at EndDate is returned.",
        "exclusive": "A call that begins at EndDate is not returned. The gateway asks for a second more.",
    },
    "start-date": {
        "inclusive": "A call that begins at StartDate is returned.",
        "exclusive": "A call that begins at StartDate is not returned. The gateway asks for a second more.",
    },
    "null-end-date": {
        "now": "A null EndDate returns the calls up to now.",
        "refused": "A null EndDate is refused. The gateway sends it for windows that end now, which therefore fail, "
        "unless GATEWAY_UPSTREAM_NULL_END is off.",
        "other": "A null EndDate leaves out calls after StartDate. The gateway sends it for windows that end now, "
        "which therefore lose calls, unless GATEWAY_UPSTREAM_NULL_END is off.",
    },
    "null-dates": {
        "accepted": "Two null dates are accepted for a client code that does not exist. Which calls they return was "
        "not asked, as it may be all of them.",
        "refused": "Two null dates are refused, so that `fetch --all` fails: use `fetch --start`.",
    },
    "unknown-client": {
        "listed": "A client code that does not exist is listed without calls.",
        "left-out": "A client code that does not exist is left out of the reply.",
        "calls": "Calls are returned for a client code that does not exist.",
        "error": "A client code that does not exist is answered with ERROR.",
        "unauthorized": "A client code that does not exist is answered with UNAUTHORIZED.",
    },
    "unknown-client-in-batch": {
        "harmless": "A client code that does not exist does not affect the other codes of a POST.",
        "spoils": "A client code that does not exist spoils a POST with other codes. The gateway then asks for each "
        "code alone.",
    },
    "codes-per-post": {
        "all": "A POST with {size} client codes is answered. More were not tried.",
        "fewer": "A POST with {size} client codes is answered, one with {more} is not.",
    },
    "clients-together": {
        "answered": "The {size} client codes that were asked in one POST are answered.",
        "some-refused": "The client code {code} is not answered, and no POST with it. The gateway then asks for each "
        "code alone.",
    },
    "fold-order": {
        "by-time": "In the hour that autumn repeats, calls are listed by time: their order tells the two passes apart.",
        "not-by-time": "In the hour that autumn repeats, the order of calls does not tell the two passes apart; ids "
        "show calls of both. The gateway marks these times as `assumed`.",
    },
    "reversed-dates": {
        "answered": "A StartDate after EndDate is answered without an error.",
        "refused": "A StartDate after EndDate is refused.",
    },
    "late-calls": {
        "late": "{calls} calls appeared in {seconds} s, {late} of them late: one between {least} and {most} s after "
        "its end, by the clock of this machine. The gateway shows a late call once it reads its time again "
        "(GATEWAY_FRESH_MIN, GATEWAY_FRESH_RATIO).",
        "prompt": "{calls} calls appeared in {seconds} s. None is known to be late: each was there {most} s after "
        "its end, by the clock of this machine.",
    },
    "response-element": {
        "GetCallDetailsResponse": "Calls are sent in GetCallDetailsResponse, as in the document.",
        "GetCallDetailResponse": "Calls are sent in GetCallDetailResponse, which the document has for failures. The "
        "gateway reads both.",
        "both": "Calls are sent in GetCallDetailsResponse and in GetCallDetailResponse. The gateway reads both.",
    },
    "failure-element": {
        "GetCallDetailResponse": "Failures are sent in GetCallDetailResponse, as in the document.",
        "GetCallDetailsResponse": "Failures are sent in GetCallDetailsResponse, which the document has for calls. The "
        "gateway reads both.",
        "both": "Failures are sent in GetCallDetailResponse and in GetCallDetailsResponse. The gateway reads both.",
    },
    "element-names": {
        "as-documented": "Elements are spelled as in the document.",
        "otherwise": "Elements have other capitals than in the document. The gateway reads them.",
    },
    "client-elements": {
        "one-per-code": "All calls of a client are in one Client element.",
        "one-per-call": "Each call has its own Client element. The gateway joins them.",
        "several": "A client has several Client elements. The gateway joins them.",
    },
    "empty-clients": {
        "listed": "A client without calls is listed.",
        "left-out": "A client without calls is left out. The gateway asks for each code that a reply leaves out.",
    },
    "duplicates": {
        "none": "No call is sent twice in a reply.",
        "present": "Some calls are sent twice in a reply. The gateway keeps the last.",
    },
    "order": {
        "ascending": "The calls of a client are listed oldest first.",
        "descending": "The calls of a client are listed newest first.",
        "none": "The calls of a client are listed in no order of time.",
    },
    "padded-values": {
        "none": "No value has white space around it.",
        "present": "Some values have white space around them. The gateway removes it.",
    },
    "zip-codes": {
        "complete": "ZIP codes have their leading zero.",
        "short": "Some ZIP codes lack their leading zero. The gateway adds none.",
    },
    "charset": {
        "utf-8": "Characters outside ASCII are UTF-8.",
        "windows-1252": "Characters outside ASCII are windows-1252, at least some of them. The gateway reads them.",
        "other": "Characters outside ASCII are {charset}. The gateway reads them.",
    },
    "well-formed": {
        "yes": "Every reply is well-formed XML.",
        "repaired": "Some replies are not well-formed XML. The gateway repairs them.",
    },
    "unknown-elements": {
        "none": "Calls have the elements of the document only.",
        "present": "Calls have elements that the document does not know: {names}. The gateway keeps them in `extra`; "
        "the setting makes fields of them.",
    },
    "unreadable-calls": {
        "none": "Every call has an id and a readable StartTime.",
        "present": "Some calls have no id or no readable StartTime. The gateway leaves them out, and counts them.",
    },
    "unauthorized": {
        "none": "No POST was answered with UNAUTHORIZED.",
        "some": "Some POSTs were answered with UNAUTHORIZED.",
    },
    "failures": {
        "none": "No POST failed without being about the request.",
        "some": "{failed} of {posts} POSTs failed, and were answered when they were sent again. Findings that would "
        "rest on a failure are unknown.",
    },
    "reply-time": {
        "in-time": "Every reply began within half of GATEWAY_UPSTREAM_TIMEOUT.",
        "slow": "A reply took more than half of GATEWAY_UPSTREAM_TIMEOUT to begin.",
    },
}


class Finding(Struct, frozen=True):
    """One finding. `value` is None if it is unknown; `setting` is NAME=VALUE if one follows.

    A line of `evidence` has a POST, and the part of its reply that shows the finding, without personal data.
    """

    name: str
    value: str | None
    text: str
    evidence: tuple[str, ...] = ()
    setting: str | None = None


def finding(name: str, value: str, *evidence: str, setting: str | None = None, **words: object) -> Finding:
    """The finding with a value of TEXTS."""
    return Finding(name, value, TEXTS[name][value].format(**words), evidence, setting)


def unknown(name: str, reason: str, *evidence: str) -> Finding:
    """A finding that the calls at hand do not show."""
    return Finding(name, None, f"Unknown: {reason}.", evidence)
